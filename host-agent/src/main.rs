//! The `hospes` command and agent.

use std::process::ExitCode;

fn main() -> ExitCode {
    host_agent::cli::main(std::env::args_os().collect())
}
