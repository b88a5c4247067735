//! sway, told by its own socket (sway-ipc(7), sway-output(5)), and looked at by wlr-output-management: a custom mode that
//! is asked for by the latter is answered with success, and is not set.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::BackEndError;
use super::wlr::Wlr;
use crate::display::layout::{Goal, Manners, Output, Way};

const MAGIC: &[u8; 6] = b"i3-ipc";
const RUN_COMMAND: u32 = 0;
/// Bytes of an answer to a command at most.
const ANSWER: usize = 64 * 1024;

/// A running sway.
#[derive(Debug)]
pub(crate) struct Sway {
    wlr: Wlr,
    socket: PathBuf,
}

#[derive(Deserialize)]
struct Answer {
    success: bool,
    #[serde(default)]
    error: Option<String>,
}

impl Sway {
    pub(crate) const MANNERS: Manners =
        Manners { ways: &[Way::Custom], patience: Duration::ZERO, scales: true };

    /// The socket that the compositor at the other end has in this directory, where it is sway.
    pub(crate) fn socket(wlr: &Wlr, runtime: &Path) -> Option<PathBuf> {
        let name = format!("sway-ipc.{}.{}.sock", wlr.peer().uid, wlr.peer().pid);
        Some(runtime.join(name)).filter(|socket| socket.exists())
    }

    /// Tells sway by this socket.
    pub(crate) const fn new(wlr: Wlr, socket: PathBuf) -> Self {
        Self { wlr, socket }
    }

    pub(crate) fn outputs(&self) -> Vec<Output> {
        self.wlr.outputs()
    }

    pub(crate) async fn changed(&mut self) -> Result<(), BackEndError> {
        self.wlr.changed().await
    }

    pub(crate) async fn apply(&mut self, goals: &[Goal]) -> Result<(), BackEndError> {
        let outputs = self.outputs();
        let commands: Vec<String> = goals
            .iter()
            .filter_map(|goal| command(goal, outputs.iter().find(|output| output.name == goal.name)?))
            .collect();
        if commands.is_empty() {
            return Ok(());
        }
        let answers = self.run(&commands.join("; ")).await?;
        match answers.into_iter().find(|answer| !answer.success) {
            Some(answer) => {
                Err(BackEndError::Refused(answer.error.unwrap_or_else(|| "it did not say why".to_owned())))
            }
            None => Ok(()),
        }
    }

    async fn run(&self, command: &str) -> Result<Vec<Answer>, BackEndError> {
        let exchanged = async {
            let mut stream = UnixStream::connect(&self.socket).await?;
            let len = u32::try_from(command.len()).unwrap_or(u32::MAX);
            let head = [&MAGIC[..], &len.to_ne_bytes(), &RUN_COMMAND.to_ne_bytes()].concat();
            stream.write_all(&[&head, command.as_bytes()].concat()).await?;
            let mut head = [0; 14];
            stream.read_exact(&mut head).await?;
            let len = u32::from_ne_bytes([head[6], head[7], head[8], head[9]]) as usize;
            let mut answer = vec![0; len.min(ANSWER)];
            stream.read_exact(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        let answer = exchanged.await.map_err(|error| {
            BackEndError::Refused(format!("its socket {}: {error}", self.socket.display()))
        })?;
        serde_json::from_slice(&answer)
            .map_err(|error| BackEndError::Refused(format!("its answer is not understood: {error}")))
    }
}

/// The command that makes one screen so, where it is not. What nobody asked to be placed, sway arranges itself.
fn command(goal: &Goal, output: &Output) -> Option<String> {
    let size = goal.size?;
    // A name goes into a command: one that could be more than a name is left out.
    if !goal.name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return None;
    }
    let mut words = String::new();
    if output.size != Some(size) {
        let (whole, rest) = (goal.refresh / 1000, goal.refresh % 1000);
        words += &format!(" mode --custom {size}@{whole}.{rest:03}Hz");
    }
    if goal.placed && goal.position != output.position {
        words += &format!(" position {} {}", goal.position.x, goal.position.y);
    }
    if goal.scale != output.scale {
        words += &format!(" scale {}", goal.scale);
    }
    (!words.is_empty()).then(|| format!("output {}{words}", goal.name))
}

#[cfg(test)]
mod tests {
    use hospes_protocol::display::{Position, Scale, Size};

    use super::*;

    #[test]
    fn a_command_says_what_differs_and_no_name_is_a_command() {
        let size = Size { width: 1733, height: 911 };
        let position = Position { x: 10, y: -5 };
        let output = Output {
            name: "A-1".into(),
            size: Some(Size { width: 800, height: 600 }),
            refresh: 60_000,
            scale: Scale::ONE,
            position: Position::default(),
            turned: false,
            modes: Vec::new(),
        };
        let goal = Goal {
            name: "A-1".into(),
            size: Some(size),
            refresh: 74_998,
            scale: Scale(1500),
            position,
            placed: true,
        };
        assert_eq!(
            command(&goal, &output).unwrap(),
            "output A-1 mode --custom 1733x911@74.998Hz position 10 -5 scale 1.5"
        );
        let unplaced = Goal { placed: false, size: output.size, scale: Scale::ONE, ..goal.clone() };
        assert_eq!(command(&unplaced, &output), None);
        assert_eq!(command(&Goal { name: "A; exec x".into(), ..goal.clone() }, &output), None);
        assert_eq!(command(&Goal { size: None, ..goal }, &output), None);
    }
}
