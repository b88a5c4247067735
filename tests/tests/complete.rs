//! Completion of VM names and of paths in a real guest, by the words that shells send and by a real bash.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration_tests::{Deadline, Guest, Host, SharedGuest, tools_started, with_tools};

static GUEST: SharedGuest = SharedGuest::new(|| with_tools("complete")).prepared(|guest| {
    tools_started(guest)?;
    guest.check(
        "mkdir -p /srv/words/folder && cd /srv/words && touch alpha alphabet 'two words' .hidden \
         \"$(printf 'alp\\033[31mred')\" && chmod 700 /root && chown -R dev: /srv/words",
    )?;
    Ok(())
});

/// Whoever presses the key waits a moment only: on a busy machine it is pressed again.
const PATIENCE: Duration = Duration::from_secs(60);

fn host(guest: &Guest) -> Result<Host> {
    let host = Host::of(guest)?;
    // Its user's session is begun: no completion waits for that.
    host.run(&["exec", "vm", "--", "true"])?.text()?;
    Ok(host)
}

/// What is offered for the last of these words, once it is `wanted`.
fn offered(host: &Host, words: &[&str], wanted: &[&str]) -> Result<()> {
    let mut last = Vec::new();
    let tried = Deadline::after(PATIENCE).poll(&format!("{words:?} to be completed"), || {
        let mut command = host.command(&[&["--", "hospes"], words].concat());
        let output = command.env("COMPLETE", "fish").env("HOSPES_VM", "vm").stdin(Stdio::null()).output()?;
        // A description stands behind a tab.
        let text = String::from_utf8(output.stdout)?;
        last = text.lines().map(|line| line.split('\t').next().unwrap_or_default().to_owned()).collect();
        last.sort();
        Ok((last == wanted).then_some(()))
    });
    tried.with_context(|| format!("It offers {last:?}"))
}

#[test]
fn paths_in_the_guest_are_offered_where_a_verb_takes_them() -> Result<()> {
    let guest = GUEST.get()?;
    let host = host(&guest)?;
    let all = ["alpha", "alphabet", "folder/", "two words"].map(|name| format!("vm:/srv/words/{name}"));
    offered(&host, &["cp", "vm:/srv/words/"], &all.each_ref().map(String::as_str))?;
    offered(&host, &["cp", "x", "vm:/srv/words/f"], &["vm:/srv/words/folder/"])?;
    offered(&host, &["cp", ":/srv/words/f"], &[":/srv/words/folder/"])?;
    offered(&host, &["cp", "vm:/srv/words/.h"], &["vm:/srv/words/.hidden"])?;
    offered(&host, &["file", "vm", "ls", "/srv/wo"], &["/srv/words/"])?;
    offered(&host, &["file", "vm", "read", "/srv/words/alphab"], &["/srv/words/alphabet"])?;
    // Names of VMs, and nothing from a directory that the user may not read.
    offered(&host, &["cp", "v"], &["vm:"])?;
    offered(&host, &["cp", "vm:/root/"], &[])
}

#[test]
fn bash_completes_a_path_behind_its_colon() -> Result<()> {
    let guest = GUEST.get()?;
    let host = host(&guest)?;
    // What a person types: three tabs, the last in a name that has to be quoted.
    let typed = "source <(hospes completions bash)\n\
                 hospes cp v\t/srv/wo\talphab\t one\n\
                 hospes cp vm:/srv/words/tw\t two\n\
                 exit\n";
    guest.check("echo one >/srv/words/alphabet; echo two >'/srv/words/two words'")?;
    Deadline::after(PATIENCE).poll("bash to complete the paths", || {
        let mut command = std::process::Command::new("script");
        command
            .args(["--quiet", "--command", "bash --norc -i", "/dev/null"])
            .env_clear()
            .envs(host.environment())
            .env("TERM", "dumb")
            .current_dir(host.home())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut bash = command.spawn().context("script(1) is missing")?;
        bash.stdin.take().context("it has a pipe")?.write_all(typed.as_bytes())?;
        let seen = String::from_utf8_lossy(&bash.wait_with_output()?.stdout).into_owned();
        let copied = |name: &str| std::fs::read_to_string(host.home().join(name)).unwrap_or_default();
        let done = copied("one") == "one\n" && copied("two") == "two\n";
        if !done {
            eprintln!("{seen}");
        }
        Ok(done.then_some(()))
    })?;
    ensure!(host.home().join("two").exists());
    Ok(())
}
