//! `hospes-tools`, the in-guest command.

use std::io;
use std::process::ExitCode;

fn main() -> ExitCode {
    match guest_tools::tools::run(std::env::args_os(), &mut io::stdout().lock()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("hospes-tools: {error:#}");
            ExitCode::from(guest_tools::tools::UNHEALTHY)
        }
    }
}
