//! Tells a guest of what happens on this machine to folders that it shares, for as long as its session stands: a
//! command of its own does it (`hospes share watch`), so that the agent is in no byte's path.

use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::sleep;

use crate::agent::state::Agent;
use crate::vm::VmName;

/// The waits after an attempt that ended: a guest mounts its folders some moments after its daemon answers. Past the last
/// one it is left alone until its next session.
const WAITS: [u64; 6] = [1, 2, 5, 10, 30, 60];

/// An attempt that lasted so long was no failure: the device was started anew.
const LASTED: Duration = Duration::from_secs(30);

/// Runs until it is dropped, or nothing more is to be hoped for.
pub(crate) async fn watch(agent: Rc<Agent>, vm: VmName) {
    let Ok(program) = std::env::current_exe() else { return };
    let mut waits = WAITS.iter();
    loop {
        let started = tokio::time::Instant::now();
        let child = Command::new(&program)
            .args(["share", "watch", vm.as_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let ended = match child {
            Ok(child) => child.wait_with_output().await,
            Err(error) => Err(error),
        };
        if started.elapsed() >= LASTED {
            waits = WAITS.iter();
        }
        let Some(&wait) = waits.next() else {
            let why = match ended {
                Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
                Err(error) => error.to_string(),
            };
            let why = why.lines().next().unwrap_or("it ended").to_owned();
            agent.log(Some(&vm), format_args!("not told of changes in shared folders: {why}"));
            return;
        };
        sleep(Duration::from_secs(wait)).await;
    }
}
