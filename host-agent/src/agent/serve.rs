//! Answers commands on the agent's socket. Only processes of our own user are heard.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use nix::unistd::getuid;
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::time::sleep;

use crate::agent::ask::{Answer, Event, LogLine, Question, What};
use crate::agent::session::answered;
use crate::agent::state::{Agent, now_ms};
use crate::sys::peer;
use crate::vm::VmName;

/// Bytes in a question.
const QUESTION_LEN: u64 = 64 * 1024;

/// Takes commands until that fails for good.
pub(crate) async fn accept(listener: UnixListener, agent: Rc<Agent>) -> io::Error {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match peer::uid(&stream) {
                Ok(uid) if uid == getuid().as_raw() => {
                    let agent = Rc::clone(&agent);
                    tokio::task::spawn_local(async move {
                        // A command that went away needs no answer.
                        let _ = converse(stream, &agent).await;
                    });
                }
                Ok(uid) => agent.log(None, format_args!("refused a command of user {uid}")),
                Err(error) => agent.log(None, format_args!("refused a command of nobody known: {error}")),
            },
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return error,
            // A peer that was gone at once, or no descriptor to spare: in a moment there may be one.
            Err(error) => {
                agent.log(None, format_args!("could not take a command: {error}"));
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(stream: UnixStream, agent: &Rc<Agent>) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::with_capacity(1024, reader);
    loop {
        let mut line = Vec::new();
        let n = (&mut reader).take(QUESTION_LEN).read_until(b'\n', &mut line).await?;
        if n == 0 {
            return Ok(());
        }
        let question: Question = match serde_json::from_slice(&line) {
            Ok(question) => question,
            Err(error) => {
                say(&mut writer, &Answer::Error(format!("not a question: {error}"))).await?;
                return Ok(());
            }
        };
        let answer = match question {
            Question::Ticket { vm, endpoint } => match agent.ticket(&vm, &endpoint) {
                Ok(issued) => Answer::Ticket((&issued).into()),
                Err(error) => Answer::Error(error),
            },
            Question::List => Answer::List(agent.listing()),
            Question::Info { vm } => info(agent, &vm).await,
            Question::Retry { vm } => {
                agent.wake(&vm);
                Answer::Done
            }
            Question::Reload => {
                agent.reload();
                Answer::Done
            }
            Question::Events => {
                let events = agent.subscribe();
                say(&mut writer, &Answer::Done).await?;
                return tell_events(events, reader, writer).await;
            }
            Question::Log { vm, follow } => {
                let (lines, more) = agent.log_lines();
                let concerns = |line: &LogLine| vm.is_none() || line.vm == vm;
                say(&mut writer, &Answer::Log(lines.into_iter().filter(concerns).collect())).await?;
                if follow {
                    return tell_log(more, concerns, reader, writer).await;
                }
                continue;
            }
        };
        say(&mut writer, &answer).await?;
    }
}

async fn info(agent: &Agent, vm: &VmName) -> Answer {
    let Some(receiver) = agent.ask_info(vm) else { return Answer::Error("not connected".to_owned()) };
    match answered(receiver).await {
        Some(info) => Answer::Info(Box::new(info)),
        None => Answer::Error("no answer".to_owned()),
    }
}

async fn tell_events(
    mut events: Receiver<Event>,
    mut reader: BufReader<OwnedReadHalf>,
    mut writer: OwnedWriteHalf,
) -> io::Result<()> {
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            () = closed(&mut reader) => return Ok(()),
        };
        match event {
            Ok(event) => say(&mut writer, &event).await?,
            Err(RecvError::Lagged(count)) => {
                say(&mut writer, &Event { at_ms: now_ms(), vm: None, what: What::Missed { count } }).await?;
            }
            Err(RecvError::Closed) => return Ok(()),
        }
    }
}

async fn tell_log(
    mut lines: Receiver<LogLine>,
    concerns: impl Fn(&LogLine) -> bool,
    mut reader: BufReader<OwnedReadHalf>,
    mut writer: OwnedWriteHalf,
) -> io::Result<()> {
    loop {
        let line = tokio::select! {
            line = lines.recv() => line,
            () = closed(&mut reader) => return Ok(()),
        };
        match line {
            Ok(line) if concerns(&line) => say(&mut writer, &Answer::Log(vec![line])).await?,
            Ok(_) | Err(RecvError::Lagged(_)) => (),
            Err(RecvError::Closed) => return Ok(()),
        }
    }
}

/// Until the command closes its end. What it says in the meantime is dropped.
async fn closed(reader: &mut BufReader<OwnedReadHalf>) {
    while let Ok(bytes) = reader.fill_buf().await {
        let n = bytes.len();
        if n == 0 {
            return;
        }
        reader.consume(n);
    }
}

async fn say(writer: &mut OwnedWriteHalf, answer: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    writer.write_all(&line).await
}
