//! Other people's suites on a shared folder, beside both of Debian's virtiofsd in the same guest: `make test-share`.
//!
//! ```text
//! share_suites [SUITE …]     pjdfstest, fsx, git, sqlite, build, attributes, stress; all without
//! ```
//! What fails on ours has to stand in [`REASONS`], and what stands there has to fail: a reason that no longer holds is
//! a failure too.

mod stress;
mod suites;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use anyhow::{Result, bail};
use integration_tests::{FolderServer, Lab, Trio};

/// What one case came to; why, where it failed or was skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

type Cases = BTreeMap<String, Outcome>;
type Suite = (&'static str, fn(&Trio, &FolderServer) -> Result<Cases>);

const SUITES: &[Suite] = &[
    ("pjdfstest", suites::pjdfstest),
    ("fsx", suites::fsx),
    ("git", suites::git),
    ("sqlite", suites::sqlite),
    ("build", suites::build),
    ("attributes", suites::attributes),
    ("stress", stress::stress),
];

/// What fails on ours, by suite and by part of the case's name, and why it does.
const REASONS: &[(&str, &str, &str)] = &[
    ("pjdfstest", "::block", DEVICES),
    ("pjdfstest", "mknod::device_files::char", DEVICES),
    ("pjdfstest", "mknod::changed_times_success::char", DEVICES),
    ("attributes", "a block device", DEVICES),
    ("attributes", "a character device", DEVICES),
    ("attributes", "a trusted attribute", PRIVILEGED),
    ("attributes", "a security label", PRIVILEGED),
    (
        "attributes",
        "an access control list",
        "it would be kept and not be enforced in the guest; virtiofsd 1.13 refuses it too",
    ),
];
const DEVICES: &str = "a device node is a door to the host's devices: a guest makes none";
const PRIVILEGED: &str = "it means something to the host's own kernel, and takes rights that no server keeps";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("share_suites: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = wanted.iter().find(|name| SUITES.iter().all(|(suite, _)| suite != name)) {
        let names: Vec<&str> = SUITES.iter().map(|(suite, _)| *suite).collect();
        bail!("No suite {unknown}: there are {}", names.join(", "));
    }
    let trio = Trio::start("share-suites", &Lab::program("host-hv")?, &std::env::temp_dir())?;
    let mut wrong = Vec::new();
    for (suite, test) in SUITES {
        if wanted.is_empty() || wanted.iter().any(|name| name == suite) {
            let mut all = Vec::new();
            for server in &trio.servers {
                let start = std::time::Instant::now();
                let cases = test(&trio, server)?;
                eprintln!("{suite} on {}: {}, {} s", server.name, count(&cases), start.elapsed().as_secs());
                all.push(cases);
            }
            report(suite, &trio, &all, &mut wrong);
        }
    }
    if !wrong.is_empty() {
        bail!("{} cases are not as they should be:\n{}", wrong.len(), wrong.join("\n"));
    }
    Ok(())
}

fn count(cases: &Cases) -> String {
    let of = |which: fn(&Outcome) -> bool| cases.values().filter(|outcome| which(outcome)).count();
    format!(
        "{} passed, {} failed, {} skipped",
        of(|outcome| *outcome == Outcome::Passed),
        of(|outcome| matches!(outcome, Outcome::Failed(_))),
        of(|outcome| matches!(outcome, Outcome::Skipped(_)))
    )
}

/// Prints what failed anywhere, or was skipped by some, and notes what of it is wrong with ours.
fn report(suite: &str, trio: &Trio, all: &[Cases], wrong: &mut Vec<String>) {
    let names: Vec<&str> = trio.servers.iter().map(|server| server.name).collect();
    println!(
        "\n| {suite} | {} | why, where ours fails |\n|---|{}---|",
        names.join(" | "),
        "---|".repeat(names.len())
    );
    let counts: Vec<String> = all.iter().map(count).collect();
    println!("| all | {} | |", counts.join(" | "));
    let mut held = vec![false; REASONS.len()];
    let cases: BTreeSet<&String> = all.iter().flat_map(BTreeMap::keys).collect();
    for case in cases {
        let outcomes: Vec<Option<&Outcome>> = all.iter().map(|cases| cases.get(case)).collect();
        let reason = REASONS.iter().position(|(of, part, _)| of == &suite && case.contains(part));
        match outcomes.first() {
            Some(Some(Outcome::Failed(text))) => match reason {
                Some(reason) => held[reason] = true,
                None => wrong.push(format!("{suite} {case} fails: {text}")),
            },
            Some(None) => wrong.push(format!("{suite} {case} did not run")),
            // What ours alone leaves out, it fails.
            Some(Some(Outcome::Skipped(why))) if outcomes.contains(&Some(&Outcome::Passed)) => match reason {
                Some(reason) => held[reason] = true,
                None => wrong.push(format!("{suite} {case} is skipped, and passes elsewhere: {why}")),
            },
            _ => {}
        }
        let reason = reason.map(|reason| REASONS[reason].2);
        let alike = outcomes.windows(2).all(|pair| pair[0] == pair[1]);
        if !alike || outcomes.iter().any(|outcome| matches!(outcome, Some(Outcome::Failed(_)))) {
            let words: Vec<&str> = outcomes
                .iter()
                .map(|outcome| match outcome {
                    Some(Outcome::Passed) => "passed",
                    Some(Outcome::Skipped(_)) => "skipped",
                    Some(Outcome::Failed(_)) => "**failed**",
                    None => "–",
                })
                .collect();
            println!("| {case} | {} | {} |", words.join(" | "), reason.unwrap_or_default());
        }
    }
    for ((of, part, why), held) in REASONS.iter().zip(held) {
        if of == &suite && !held {
            wrong.push(format!("{suite} {part} passes, and is said not to: {why}"));
        }
    }
}
