//! A guest to try things in: `make guest-shell`, or `lab [--cold] [--ssh] [--bare]`.
//!
//! It has hospes-tools installed, unless `--bare`, and is gone with the shell.

use std::io::{self, BufRead, Write};
use std::time::Duration;

use anyhow::{Result, bail};
use integration_tests::{Guest, GuestSpec, Lab};

const COMMAND: Duration = Duration::from_secs(24 * 3600);

fn main() -> Result<()> {
    let mut spec = GuestSpec::new("lab");
    let mut bare = false;
    let mut ssh = false;
    for word in std::env::args().skip(1) {
        match word.as_str() {
            "--cold" => spec = spec.cold(),
            "--ssh" => ssh = true,
            "--bare" => bare = true,
            _ => bail!("Unknown option {word}: there are --cold, --ssh and --bare"),
        }
    }
    if ssh {
        spec = spec.ssh();
    }
    if !bare {
        spec = spec.installed(Lab::package()?);
    }
    let guest = Guest::boot(spec)?;
    println!("Its vsock on this machine:  unix:{}", guest.vsock_path().display());
    println!("Its console:                {}", guest.path("console.log").display());
    if ssh {
        let command = guest.ssh("dev")?;
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        println!("ssh:                        ssh {}", words.join(" "));
    }
    println!("Every line is a bash script, run as root in the guest. An end of file ends the guest.");
    let mut lines = io::stdin().lock().lines();
    loop {
        print!("guest# ");
        io::stdout().flush()?;
        let Some(line) = lines.next() else { break };
        let output = guest.sh_within(&line?, COMMAND)?;
        print!("{}", output.stdout);
        eprint!("{}", output.stderr);
        if output.status != 0 {
            eprintln!("(exit status {})", output.status);
        }
    }
    println!();
    Ok(())
}
