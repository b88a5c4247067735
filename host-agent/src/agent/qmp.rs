//! QEMU's own word on a VM: paused, goes on, ends. A line of JSON each way (QEMU's QMP specification).

use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use hospes_protocol::time::Occasion;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::agent::ask::What;
use crate::agent::state::Agent;
use crate::vm::VmName;

/// Bytes in a line. QEMU's longest events have a few hundred.
const LINE_LEN: u64 = 1024 * 1024;

/// A socket has its name a moment before somebody listens at it, and nothing tells of that: how long to wait before it
/// is tried again, doubled each time.
const NOT_YET: Duration = Duration::from_millis(20);
/// How often, until it counts as one that a QEMU left behind: five seconds in all.
const NOT_YET_TRIES: u32 = 8;

/// Why QEMU is not heard.
#[derive(Debug, thiserror::Error)]
enum QmpError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("what answers there is no QMP")]
    NoQmp,
}

/// Obeys QEMU for as long as the VM is among the agent's.
pub(crate) async fn follow(agent: Rc<Agent>, vm: VmName, path: PathBuf, wake: Rc<Notify>) {
    let mut said = String::new();
    let mut refused = 0;
    loop {
        // Before the attempt, so that a socket which appears behind it is not missed. Where nothing tells of it, the
        // session that begins does.
        if let Some(dir) = path.parent() {
            let _ = agent.watcher.watch_names(dir);
        }
        match listen(&agent, &vm, &path).await {
            Ok(()) => said.clear(),
            Err(QmpError::Io(error))
                if error.kind() == io::ErrorKind::ConnectionRefused && refused < NOT_YET_TRIES =>
            {
                let _ = timeout(NOT_YET * 2_u32.pow(refused), wake.notified()).await;
                refused += 1;
                continue;
            }
            Err(error) if error.to_string() != said => {
                said = error.to_string();
                agent.log(Some(&vm), format_args!("QEMU is not heard at {}: {said}", path.display()));
            }
            Err(_) => (),
        }
        refused = 0;
        wake.notified().await;
    }
}

/// Until QEMU hangs up.
async fn listen(agent: &Rc<Agent>, vm: &VmName, path: &Path) -> Result<(), QmpError> {
    let (reader, mut writer) = UnixStream::connect(path).await?.into_split();
    let mut reader = BufReader::with_capacity(1024, reader);
    let greeting = line(&mut reader).await?.ok_or(QmpError::NoQmp)?;
    if greeting.get("QMP").is_none() {
        return Err(QmpError::NoQmp);
    }
    agent.log(Some(vm), format_args!("QEMU is heard at {}", path.display()));
    writer.write_all(b"{\"execute\":\"qmp_capabilities\"}\n").await?;
    while let Some(message) = line(&mut reader).await? {
        match message.get("event").and_then(Value::as_str) {
            Some("STOP") => agent.tell(Some(vm), What::Paused),
            Some("RESUME") => {
                agent.occasion(Some(vm), Occasion::RESUMED);
                agent.tell(Some(vm), What::Unpaused);
            }
            Some("SHUTDOWN") => agent.stopped(vm, Some("unknown")),
            _ => (),
        }
    }
    Ok(())
}

async fn line(reader: &mut (impl AsyncBufReadExt + Unpin)) -> Result<Option<Value>, QmpError> {
    let mut bytes = Vec::new();
    if reader.take(LINE_LEN).read_until(b'\n', &mut bytes).await? == 0 {
        return Ok(None);
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|_| QmpError::NoQmp)
}
