//! The kernel's own test of vsock (`tools/testing/vsock`), guest to guest, over our device: `make test-vsock`.
//!
//! Two guests whose devices one `host-hv` serves run it against each other. Its two halves keep in step over TCP, which
//! `hospes forward` leads from one guest to the other: they share no network.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use integration_tests::{Guest, GuestSpec, Host, Lab};

const CIDS: [u64; 2] = [42, 43];
/// Where the test's halves meet, in either guest.
const PORT: u16 = 1234;
/// For one half of the test, under emulation.
const PATIENCE: Duration = Duration::from_secs(240);
const PROGRAM: &str = "/usr/local/bin/vsock_test";
/// What our device does not offer, and why.
const NOT_OFFERED: [(&str, &str); 1] =
    [("SEQPACKET", "VIRTIO_VSOCK_F_SEQPACKET is not offered: nothing here sends records")];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vsock_test: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let path =
        std::env::args_os().nth(1).map(PathBuf::from).context("usage: vsock_test PATH, of the kernel's")?;
    let program = fs::read(&path).with_context(|| format!("Cannot read {}", path.display()))?;
    let first = GuestSpec::new("vsock-test").installed(Lab::package()?).with_sibling(CIDS[1]);
    let first = Guest::boot(first)?;
    let second = GuestSpec::new("vsock-test-sibling").installed(Lab::package()?).sibling_of(&first, CIDS[1]);
    let second = Guest::boot(second)?;
    for guest in [&first, &second] {
        guest.put(PROGRAM, 0o755, &program)?;
    }
    let cases = list(&first)?;
    let _meeting = Meeting::of(&first, &second)?;
    let skip: Vec<String> = cases.iter().filter(|case| case.why_not().is_some()).map(Case::skip).collect();
    let half = |mode: &str, peer: u64| {
        format!(
            "timeout {} {PROGRAM} --mode={mode} --control-host=127.0.0.1 --control-port={PORT} --peer-cid={peer} {} 2>&1",
            PATIENCE.as_secs(),
            skip.join(" ")
        )
    };
    let listens = format!("until grep -q ':{PORT:04X} .* 0A ' /proc/net/tcp; do sleep 0.1; done");
    first.check(&format!("({}) >/tmp/server.log & {listens}", half("server", CIDS[1])))?;
    let client = second.sh_within(&half("client", CIDS[0]), PATIENCE * 2)?;
    // The server ends with the client, or at its own limit.
    let server = "while pgrep -x vsock_test >/dev/null; do sleep 0.1; done; cat /tmp/server.log";
    let server = first.sh_within(server, PATIENCE * 2)?.stdout;
    let mut failed = 0;
    println!("| case | guest to guest |\n|---|---|");
    for case in &cases {
        let passed = |log: &str| log.contains(&format!("{} - {}...ok", case.number, case.name));
        let verdict = match case.why_not() {
            Some(why) => format!("skipped: {why}"),
            None if passed(&client.stdout) && passed(&server) => "passed".to_owned(),
            None => {
                failed += 1;
                "**failed**".to_owned()
            }
        };
        println!("| {} | {verdict} |", case.name);
    }
    if failed > 0 {
        bail!("{failed} cases failed.\nThe client said:\n{}\nThe server said:\n{server}", client.stdout);
    }
    Ok(())
}

struct Case {
    number: u32,
    name: String,
}

impl Case {
    fn why_not(&self) -> Option<&'static str> {
        NOT_OFFERED.iter().find(|(word, _)| self.name.contains(word)).map(|(_, why)| *why)
    }

    fn skip(&self) -> String {
        format!("--skip={}", self.number)
    }
}

fn list(guest: &Guest) -> Result<Vec<Case>> {
    // It lists, and says by its status that it has tested nothing.
    let text = guest.sh(&format!("{PROGRAM} --list"))?.stdout;
    let cases: Vec<Case> = text
        .lines()
        .filter_map(|line| {
            let (number, name) = line.trim().split_once('\t')?;
            Some(Case { number: number.parse().ok()?, name: name.trim().to_owned() })
        })
        .collect();
    ensure!(!cases.is_empty(), "The test lists no cases: {text}");
    Ok(cases)
}

/// The second guest's port, led to the first's.
struct Meeting {
    forwards: Vec<Child>,
    _host: Host,
}

impl Meeting {
    fn of(first: &Guest, second: &Guest) -> Result<Self> {
        let mut host = Host::new()?;
        host.add("first", first)?;
        host.add("second", second)?;
        host.start_agent()?;
        host.wait_connected("first")?;
        host.wait_connected("second")?;
        let mut meeting = Self { forwards: Vec::new(), _host: host };
        let here = meeting.forward(&[
            "forward",
            "first",
            "--json",
            "-u",
            "dev",
            "-L",
            &format!("0:localhost:{PORT}"),
        ])?;
        let there = format!("{PORT}:localhost:{here}");
        meeting.forward(&["forward", "second", "--json", "-u", "dev", "-R", &there])?;
        Ok(meeting)
    }

    /// Starts one, and says its port once it listens.
    fn forward(&mut self, words: &[&str]) -> Result<u64> {
        let mut child = self._host.command(words).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("stdout is a pipe")?;
        self.forwards.push(child);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let event: serde_json::Value =
            serde_json::from_str(&line).with_context(|| format!("It said {line:?}"))?;
        event["port"].as_u64().with_context(|| format!("It said {line:?}"))
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        for child in &mut self.forwards {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
