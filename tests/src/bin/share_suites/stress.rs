//! Every stressor of stress-ng's class of file systems, one after the other, each checking what it gets.

use std::time::Duration;

use anyhow::{Result, ensure};
use integration_tests::{FolderServer, Trio};

use crate::{Cases, Outcome};

const LIMIT: Duration = Duration::from_secs(1200);
/// How long each runs.
const SECONDS: u32 = 2;
/// What a stressor does before it looks at the time is made as small as an emulated machine needs it.
const SIZES: &str = "--copy-file-bytes 128m --fallocate-bytes 16m --hdd-bytes 16m --iomix-bytes 16m --sync-file-bytes 16m \
                     --dentries 256";

/// stress-ng.
pub(crate) fn stress(trio: &Trio, server: &FolderServer) -> Result<Cases> {
    let script = format!(
        "mkdir -p {0}/stress && cd {0}/stress && stress-ng --class filesystem --sequential 1 --timeout {SECONDS}s \
         --verify --temp-path {0}/stress {SIZES} 2>&1; rm -rf {0}/stress",
        server.mount
    );
    let output = trio.sh(&script, LIMIT)?;
    let cases = parse(&output.stdout);
    ensure!(cases.len() > 30, "stress-ng said:\n{}\n{}", output.stdout, output.stderr);
    Ok(cases)
}

/// Its last words are three lists of stressors and of how many of each there were: `passed: 2: access (1) chdir (1)`.
fn parse(said: &str) -> Cases {
    let mut cases = Cases::new();
    for line in said.lines() {
        let Some((_, words)) = line.split_once("] ") else { continue };
        let Some((list, rest)) = words.split_once(": ") else { continue };
        let Some((_, names)) = rest.split_once(": ") else { continue };
        for name in names.split_whitespace().filter(|word| !word.starts_with('(')) {
            let outcome = match list {
                "passed" => Outcome::Passed,
                "skipped" => Outcome::Skipped(why(said, "info", name)),
                "failed" => Outcome::Failed(why(said, "fail", name)),
                _ => continue,
            };
            cases.insert(name.to_owned(), outcome);
        }
    }
    cases
}

/// What a stressor said about it first.
fn why(said: &str, level: &str, name: &str) -> String {
    let lines = said.lines().filter_map(|line| line.strip_prefix("stress-ng: ")?.strip_prefix(level));
    let mut words = lines.filter_map(|line| line.split_once("] ")?.1.strip_prefix(name)?.strip_prefix(": "));
    words.next().unwrap_or("it did not say why").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stressors_are_told_apart_by_what_became_of_them() {
        let said = "stress-ng: info:  [9] dispatching hogs: 1 access\n\
                    stress-ng: fail:  [9] access: no access, errno=13 (Permission denied)\n\
                    stress-ng: info:  [9] binderfs: not supported, skipping stress test\n\
                    stress-ng: info:  [9] skipped: 1: binderfs (1)\n\
                    stress-ng: info:  [9] passed: 2: chdir (1) xattr (1)\n\
                    stress-ng: info:  [9] failed: 1: access (1)\n\
                    stress-ng: info:  [9] metrics untrustworthy: 0\n";
        let cases = parse(said);
        assert_eq!(cases.len(), 4);
        assert_eq!(cases["chdir"], Outcome::Passed);
        assert_eq!(cases["access"], Outcome::Failed("no access, errno=13 (Permission denied)".to_owned()));
        assert_eq!(cases["binderfs"], Outcome::Skipped("not supported, skipping stress test".to_owned()));
    }
}
