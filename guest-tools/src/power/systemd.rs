//! systemd itself: the targets, where there is no logind, and scripts as transient units.

use std::path::Path;
use std::time::Duration;

use hospes_protocol::power::{PowerAction, ScriptEnd};
use zbus::{OwnedObjectPath, Variant};

use super::in_time;
use super::run::Ended;
use super::script::Script;
use crate::daemon::systemd::{Manager, UnitError, ask_privately};

/// How long systemd may take beyond a script's own time: to start it, and to kill it.
const MARGIN: Duration = Duration::from_secs(30);
/// From the polite signal to the other, in microseconds.
const KILL_US: u64 = 5_000_000;

/// Starts the action's target and does not wait for it.
pub(super) async fn go(action: PowerAction) -> zbus::Result<()> {
    let target = match action {
        PowerAction::POWEROFF => "poweroff.target",
        PowerAction::REBOOT => "reboot.target",
        PowerAction::HALT => "halt.target",
        PowerAction::SUSPEND => "suspend.target",
        _ => return Err(zbus::Error::Unsupported),
    };
    in_time(async {
        // Without a bus it is asked on its own socket, which takes no other mode and gives no answer.
        let Ok(manager) = Manager::connect().await else { return ask_privately(target).await };
        let mode = if action == PowerAction::SUSPEND { "replace" } else { "replace-irreversibly" };
        manager.call("StartUnit", &(target, mode)).await.map(drop)
    })
    .await
}

/// Why the machine goes down, where it does.
pub(super) async fn going_down() -> Option<&'static str> {
    type Jobs = Vec<(u32, String, String, String, OwnedObjectPath, OwnedObjectPath)>;
    let manager = Manager::connect().await.ok()?;
    let jobs: Jobs = manager.call("ListJobs", &()).await.ok()?.body().deserialize().ok()?;
    jobs.iter().find_map(|(_, unit, ..)| match unit.as_str() {
        "poweroff.target" => Some("poweroff"),
        "reboot.target" | "kexec.target" | "soft-reboot.target" => Some("reboot"),
        "halt.target" => Some("halt"),
        _ => None,
    })
}

/// Runs a script as a unit of its own, and waits for its end. Both outputs go to the file.
pub(super) async fn run(
    unit: &str,
    script: &Script,
    word: &str,
    timeout: Duration,
    output: &Path,
) -> Result<Ended, String> {
    let run = attempt(unit, script, word, timeout, output);
    match tokio::time::timeout(timeout + MARGIN, run).await {
        Ok(ended) => ended.map_err(|error| error.to_string()),
        Err(_) => Err("systemd did not say how it ended".into()),
    }
}

async fn attempt(
    unit: &str,
    script: &Script,
    word: &str,
    timeout: Duration,
    output: &Path,
) -> Result<Ended, UnitError> {
    let declined = |source| UnitError::Declined { unit: unit.into(), source };
    let manager = Manager::connect().await.map_err(UnitError::Unreachable)?;
    let mut jobs = manager.jobs().await.map_err(UnitError::Unreachable)?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let command = vec![(text(&script.path), vec![text(&script.path), word.to_owned()], false)];
    let microseconds = u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX);
    let properties: Vec<(&str, Variant<'_>)> = vec![
        ("Description", Variant::from(format!("Hospes script {} ({word})", script.name))),
        ("Type", Variant::from("oneshot")),
        // It is there until its status has been read.
        ("RemainAfterExit", Variant::from(true)),
        ("ExecStart", Variant::from(command)),
        ("Environment", Variant::from(vec![format!("HOSPES_ACTION={word}")])),
        ("TimeoutStartUSec", Variant::from(microseconds)),
        ("TimeoutStopUSec", Variant::from(KILL_US)),
        ("StandardOutputFileToTruncate", Variant::from(text(output))),
        ("StandardError", Variant::from("inherit")),
    ];
    let auxiliary: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
    let reply =
        manager.call("StartTransientUnit", &(unit, "fail", properties, auxiliary)).await.map_err(declined)?;
    let job: OwnedObjectPath = reply.body().deserialize().map_err(declined)?;
    let result = jobs.result(&job).await.ok_or_else(|| UnitError::Left { unit: unit.into() })?;
    let status = status(&manager, unit).await.map_err(declined);
    // Whichever applies: a unit that ended well stays until it is stopped, one that failed until it is forgotten.
    let _ = manager.call("StopUnit", &(unit, "replace")).await;
    let _ = manager.call("ResetFailedUnit", &unit).await;
    let (reason, code, value) = status?;
    match reason.as_str() {
        "timeout" => Ok((ScriptEnd::TIMED_OUT, 0)),
        // systemd could not run it at all; its own status says why, from 200 up.
        "exec-condition" | "resources" | "protocol" | "start-limit-hit" => {
            Err(UnitError::Job { unit: unit.into(), result })
        }
        _ => Ok((ScriptEnd::ENDED, shell_status(code, value))),
    }
}

/// `Result`, `ExecMainCode` and `ExecMainStatus` of a service (org.freedesktop.systemd1(5)).
async fn status(manager: &Manager, unit: &str) -> zbus::Result<(String, i32, i32)> {
    let path: OwnedObjectPath = manager.call("GetUnit", &unit).await?.body().deserialize()?;
    let reason = manager.property(&path, "org.freedesktop.systemd1.Service", "Result").await?;
    let code = manager.property(&path, "org.freedesktop.systemd1.Service", "ExecMainCode").await?;
    let value = manager.property(&path, "org.freedesktop.systemd1.Service", "ExecMainStatus").await?;
    Ok((String::try_from(reason)?, i32::try_from(code)?, i32::try_from(value)?))
}

/// `CLD_EXITED` is 1, and any other way to end a signal (waitid(2)).
fn shell_status(code: i32, value: i32) -> u8 {
    let value = if code == 1 { value } else { 128 + value };
    u8::try_from(value).unwrap_or(255)
}
