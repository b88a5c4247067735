//! The table of verbs: what a host may ask for, what each is called in `tools.toml` and in the log, and how its request
//! names a user.
//!
//! A new verb is a row of [`Verb`]'s macro and, where a user's worker serves it, an arm of [`Request::decode`].

use std::fmt;

use hospes_protocol::clipboard::files::{Files, Lend};
use hospes_protocol::clipboard::{Feed, Fetch, Offer, Set, Share, check_type};
use hospes_protocol::codec::{self, CodecError};
use hospes_protocol::copy::{Pull, Push, Resume};
use hospes_protocol::display::{self, Display};
use hospes_protocol::error::WireError;
use hospes_protocol::exec::{Attach, Exec};
use hospes_protocol::file::FileRequest;
use hospes_protocol::forward::{Accept, Connect, Listen};
use hospes_protocol::frame::FrameId;
use hospes_protocol::process::{Kill, Ps, Target};
use hospes_protocol::time::Time;
use hospes_protocol::version::Capabilities;

macro_rules! verbs {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $capability:expr;)+) => {
        /// What a host may ask for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Verb {
            $($(#[$doc])* $variant,)+
        }

        impl Verb {
            /// Every verb.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
            /// Every verb's name, in the same order.
            pub const NAMES: &'static [&'static str] = &[$($name,)+];

            /// Its name in `tools.toml` and in the log.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// The capability that a host sees while it is allowed.
            #[must_use]
            pub const fn capability(self) -> Capabilities {
                match self { $(Self::$variant => $capability,)+ }
            }
        }
    };
}

verbs! {
    /// Run a command.
    Exec = "exec", Capabilities::EXEC;
    /// Come back to a detached command.
    Attach = "attach", Capabilities::EXEC;
    /// Copy files and trees, either way.
    Copy = "copy", Capabilities::COPY;
    /// List processes.
    Ps = "ps", Capabilities::EXEC;
    /// Signal processes.
    Kill = "kill", Capabilities::EXEC;
    /// Read and change files: stat, ls, mkdir, rm, mv, mktemp, read, write.
    File = "file", Capabilities::FILE;
    /// Carry connections, either way.
    Forward = "forward", Capabilities::FORWARD;
    /// Read, set and unset guest variables.
    Variables = "variables", Capabilities::VARIABLES;
    /// Shut down, reboot, halt, suspend.
    Power = "power", Capabilities::POWER;
    /// Freeze, thaw and trim file systems.
    Freeze = "freeze", Capabilities::FREEZE;
    /// Read the guest's information and be told when it changes.
    Info = "info", Capabilities::INFO;
    /// Set the clock by the host's.
    Time = "time", Capabilities::TIME;
    /// Share the active desktop's clipboard, either way.
    Clipboard = "clipboard", Capabilities::CLIPBOARD;
    /// Set and look at the active desktop's screens.
    Display = "display", Capabilities::DISPLAY;
}

impl Verb {
    /// The verb with this name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|verb| verb.name() == name)
    }

    /// The verb of a request that a user's worker serves on a connection of its own.
    #[must_use]
    pub const fn of_request(id: FrameId) -> Option<Self> {
        match id {
            FrameId::EXEC => Some(Self::Exec),
            FrameId::EXEC_ATTACH => Some(Self::Attach),
            FrameId::COPY_PUSH | FrameId::COPY_PULL | FrameId::COPY_RESUME => Some(Self::Copy),
            FrameId::PS => Some(Self::Ps),
            FrameId::KILL => Some(Self::Kill),
            FrameId::TIME => Some(Self::Time),
            FrameId::FILE => Some(Self::File),
            FrameId::CLIPBOARD
            | FrameId::CLIPBOARD_FETCH
            | FrameId::CLIPBOARD_FEED
            | FrameId::CLIPBOARD_SET
            | FrameId::CLIPBOARD_FILES
            | FrameId::CLIPBOARD_LEND => Some(Self::Clipboard),
            FrameId::DISPLAY => Some(Self::Display),
            FrameId::FORWARD_CONNECT | FrameId::FORWARD_LISTEN | FrameId::FORWARD_ACCEPT => {
                Some(Self::Forward)
            }
            _ => None,
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Sources of a copy that its audit line names.
const SOURCES: usize = 8;

/// What the daemon must know of a request before it hands it over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The user it names; empty for the guest's only human user.
    pub user: String,
    /// What it does, for the audit line. Raw: [`crate::audit`] escapes and shortens it.
    pub subject: Vec<u8>,
}

impl Request {
    /// Decodes the whole of a request, so that nothing malformed reaches a worker.
    ///
    /// # Errors
    /// A [`WireError`] of kind `PROTOCOL`: the host is at fault.
    pub fn decode(verb: Verb, id: FrameId, payload: &[u8]) -> Result<Self, WireError> {
        let wire = |error: CodecError| WireError::protocol(error);
        match verb {
            Verb::Exec => {
                let exec: Exec = codec::decode(payload).map_err(wire)?;
                exec.check().map_err(WireError::protocol)?;
                Ok(Self { subject: command(&exec), user: exec.user })
            }
            Verb::Attach => {
                let Attach { user, id } = codec::decode(payload).map_err(wire)?;
                Ok(Self { user, subject: format!("command {}", id.0).into_bytes() })
            }
            Verb::Copy => match id {
                FrameId::COPY_PUSH => {
                    let push: Push = codec::decode(payload).map_err(wire)?;
                    push.check().map_err(WireError::protocol)?;
                    Ok(Self { user: push.user, subject: [b"to ", &push.target[..]].concat() })
                }
                FrameId::COPY_PULL => {
                    let pull: Pull = codec::decode(payload).map_err(wire)?;
                    pull.check().map_err(WireError::protocol)?;
                    let mut subject = b"from".to_vec();
                    for source in pull.sources.iter().take(SOURCES) {
                        subject.push(b' ');
                        subject.extend_from_slice(source);
                    }
                    if let Some(more) = pull.sources.len().checked_sub(SOURCES).filter(|more| *more > 0) {
                        subject.extend_from_slice(format!(" and {more} more").as_bytes());
                    }
                    Ok(Self { user: pull.user, subject })
                }
                _ => {
                    let Resume { user, taken, .. } = codec::decode(payload).map_err(wire)?;
                    Ok(Self { user, subject: format!("go on after {taken} bytes").into_bytes() })
                }
            },
            Verb::Ps => {
                let Ps { user, all } = codec::decode(payload).map_err(wire)?;
                Ok(Self { user, subject: if all { b"all".to_vec() } else { Vec::new() } })
            }
            Verb::Kill => {
                let Kill { user, target, signal } = codec::decode(payload).map_err(wire)?;
                let target = match target {
                    Target::Pid(pid) => format!("process {pid}"),
                    Target::Exec(id) => format!("command {}", id.0),
                };
                Ok(Self { user, subject: format!("signal {signal} to {target}").into_bytes() })
            }
            Verb::File => {
                let FileRequest { user, verb } = codec::decode(payload).map_err(wire)?;
                if !verb.paths_are_sane() {
                    return Err(WireError::protocol(
                        "A path of the request is empty, too long, or has a NUL",
                    ));
                }
                let mut subject = verb.word().as_bytes().to_vec();
                for path in verb.paths() {
                    subject.push(b' ');
                    subject.extend_from_slice(path);
                }
                Ok(Self { user, subject })
            }
            Verb::Forward => {
                let (user, subject) = match id {
                    FrameId::FORWARD_LISTEN => {
                        let Listen { user, on } = codec::decode(payload).map_err(wire)?;
                        (user, format!("listen on {on}"))
                    }
                    FrameId::FORWARD_ACCEPT => {
                        let Accept { user, .. } = codec::decode(payload).map_err(wire)?;
                        (user, "take a caller".to_owned())
                    }
                    _ => {
                        let Connect { user, to } = codec::decode(payload).map_err(wire)?;
                        (user, format!("connect to {to}"))
                    }
                };
                Ok(Self { user, subject: subject.into_bytes() })
            }
            Verb::Clipboard => {
                let subject = match id {
                    FrameId::CLIPBOARD_FETCH => {
                        let Fetch { kind, .. } = codec::decode(payload).map_err(wire)?;
                        check_type(&kind).map_err(WireError::protocol)?;
                        format!("paste {kind} of the guest's")
                    }
                    FrameId::CLIPBOARD_FEED => {
                        let Feed { .. } = codec::decode(payload).map_err(wire)?;
                        "paste into the guest".to_owned()
                    }
                    FrameId::CLIPBOARD_FILES => {
                        let Files { .. } = codec::decode(payload).map_err(wire)?;
                        "paste files of the guest's".to_owned()
                    }
                    FrameId::CLIPBOARD_LEND => {
                        let Lend { .. } = codec::decode(payload).map_err(wire)?;
                        "paste files into the guest".to_owned()
                    }
                    FrameId::CLIPBOARD_SET => {
                        let Set { types, selection } = codec::decode(payload).map_err(wire)?;
                        let offer = Offer { serial: 1, selection, types };
                        offer.check().map_err(WireError::protocol)?;
                        format!("copy {}", offer.types.first().map_or("nothing", String::as_str))
                    }
                    _ => {
                        let Share { to_guest, to_host } = codec::decode(payload).map_err(wire)?;
                        match (to_guest, to_host) {
                            (true, true) => "share both ways",
                            (true, false) => "share with the guest",
                            (false, true) => "share with the host",
                            (false, false) => "share nothing",
                        }
                        .to_owned()
                    }
                };
                Ok(Self { user: String::new(), subject: subject.into_bytes() })
            }
            Verb::Time => {
                let Time { occasion } = codec::decode(payload).map_err(wire)?;
                Ok(Self { user: "root".into(), subject: occasion.words().as_bytes().to_vec() })
            }
            Verb::Display => {
                let display: Display = codec::decode(payload).map_err(wire)?;
                display.check().map_err(WireError::protocol)?;
                Ok(Self { user: String::new(), subject: screens(&display.ask).into_bytes() })
            }
            Verb::Info | Verb::Variables | Verb::Power | Verb::Freeze => {
                Err(WireError::protocol(format!("{verb} is asked for with a REQUEST")))
            }
        }
    }
}

/// What is asked of the screens, in one line.
fn screens(ask: &display::Ask) -> String {
    match ask {
        display::Ask::State => "look".to_owned(),
        display::Ask::Follow(output) if output.is_empty() => "follow".to_owned(),
        display::Ask::Follow(output) => format!("follow {output}"),
        display::Ask::Set(wants) => {
            let mut line = "set".to_owned();
            for want in wants {
                let name = if want.output.is_empty() { "the screen" } else { &want.output };
                line += &format!(" {name}");
                let (size, scale, place) = (want.size, want.scale, want.position);
                let words = [
                    size.map(|size| format!(" {size}")),
                    scale.map(|scale| format!(" scale {scale}")),
                    place.map(|place| format!(" at {place}")),
                ];
                line.extend(words.into_iter().flatten());
            }
            line
        }
    }
}

/// A command's arguments in one line. Cut while it is made: the audit line keeps only the beginning.
fn command(exec: &Exec) -> Vec<u8> {
    if exec.argv.is_empty() {
        return b"(login shell)".to_vec();
    }
    let mut line = Vec::new();
    for argument in &exec.argv {
        if !line.is_empty() {
            line.push(b' ');
        }
        line.extend_from_slice(&argument[..argument.len().min(crate::audit::SUBJECT)]);
        if line.len() > crate::audit::SUBJECT {
            break;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded<T: serde::Serialize>(message: &T) -> Vec<u8> {
        let mut out = Vec::new();
        codec::encode_into(message, &mut out);
        out
    }

    #[test]
    fn a_request_names_its_user_and_what_it_does() {
        let exec = Exec {
            user: "ada".into(),
            argv: vec![b"make".to_vec(), b"test all".to_vec()],
            ..Exec::default()
        };
        let request = Request::decode(Verb::Exec, FrameId::EXEC, &encoded(&exec)).unwrap();
        assert_eq!((request.user.as_str(), request.subject.as_slice()), ("ada", &b"make test all"[..]));
        let kill = Kill { user: String::new(), target: Target::Pid(7), signal: 15 };
        assert_eq!(
            Request::decode(Verb::Kill, FrameId::KILL, &encoded(&kill)).unwrap().subject,
            b"signal 15 to process 7".to_vec()
        );
    }

    #[test]
    fn files_and_addresses_are_named() {
        let from = b"a\xff".to_vec();
        let verb = hospes_protocol::file::Verb::Rename { from, to: b"/b".to_vec(), replace: true };
        let file = FileRequest { user: "ada".into(), verb };
        let request = Request::decode(Verb::File, FrameId::FILE, &encoded(&file)).unwrap();
        assert_eq!(request.subject, b"mv a\xff /b");
        let nul = hospes_protocol::file::Verb::List { path: b"a\0".to_vec() };
        let nul = encoded(&FileRequest { user: String::new(), verb: nul });
        assert!(Request::decode(Verb::File, FrameId::FILE, &nul).is_err());
        let to = hospes_protocol::forward::Address::parse("tcp:22").unwrap();
        let connect = encoded(&Connect { user: String::new(), to });
        let request = Request::decode(Verb::Forward, FrameId::FORWARD_CONNECT, &connect).unwrap();
        assert_eq!(request.subject, b"connect to tcp:localhost:22");
    }

    #[test]
    fn a_request_past_its_limits_is_refused_before_any_worker_sees_it() {
        let exec = Exec { argv: vec![b"a\0b".to_vec()], ..Exec::default() };
        assert!(
            Request::decode(Verb::Exec, FrameId::EXEC, &encoded(&exec)).unwrap_err().message.contains("NUL")
        );
        assert!(Request::decode(Verb::Ps, FrameId::PS, b"\xff\xff").is_err());
    }

    #[test]
    fn what_is_asked_of_screens_is_told_and_what_none_can_have_is_refused() {
        let size = Some(display::Size { width: 1733, height: 911 });
        let want = display::Want { size, scale: Some(display::Scale(1500)), ..display::Want::default() };
        let decode = |want: &display::Want| {
            let display = Display { ask: display::Ask::Set(vec![want.clone()]) };
            Request::decode(Verb::Display, FrameId::DISPLAY, &encoded(&display))
        };
        assert_eq!(decode(&want).unwrap().subject, b"set the screen 1733x911 scale 1.5");
        let size = Some(display::Size { width: 1, height: 1 });
        assert!(decode(&display::Want { size, ..want }).is_err());
    }

    #[test]
    fn names_and_verbs_stand_in_the_same_order() {
        for (verb, name) in Verb::ALL.iter().zip(Verb::NAMES) {
            assert_eq!(Verb::by_name(name), Some(*verb));
        }
    }
}
