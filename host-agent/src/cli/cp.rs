//! `hospes cp`

use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use hospes_protocol::copy::{CopyId, Pull, Push};
use hospes_protocol::error::WireError;
use hospes_tree::progress::Progress;
use hospes_tree::read::{Produce, Reader, Source};
use hospes_tree::transfer::Cancel;
use hospes_tree::write::{Consume, Options, Target, Writer};
use hospes_tree::{Exclude, Problem, Problems};
use serde::Serialize;

use crate::cli::target::{Reach, VARIABLE};
use crate::cli::{Verb, VmPlace};
use crate::client::Client;
use crate::command_error::CommandError;
use crate::copy::{self, Copied, CopyError, TarReader, TarWriter};
use crate::identity;
use crate::pins::Verdict;
use crate::printable;
use crate::ui;
use crate::vm::VmName;

mod bar;

/// The exit code where some entries could not be copied.
const SOME_FAILED: u8 = 1;

/// Copy files and directories into a VM or out of it
///
/// One side is VM:PATH, the other a path here; with HOSPES_VM set, :PATH is enough. In the guest a relative path
/// starts at the user's home. A path here that has a colon in it is written ./like:this.
///
///   hospes cp report.pdf dev:              into the home directory
///   hospes cp -u root nginx.conf dev:/etc/nginx/
///   hospes cp dev:src/app .                the directory app and all in it, to ./app
///   hospes cp dev:src/app/ there           what is in app, into there
///   hospes cp --exclude target/ --exclude '*.o' src dev:
///   tar -c . | hospes cp - dev:backup      extracts a tar archive in the guest
///   hospes cp dev:/etc - | tar -tv         writes one
///
/// Directories are always copied whole. A slash at the end of a source means what is in the directory, as with rsync.
/// Where the target is a directory, the source goes into it; else the target is the source's new name. A target that is
/// missing is made a directory where it ends in a slash, where there are several sources, or contents.
///
/// Modes, times, symbolic and hard links, holes and user attributes are kept; owners are not, everything belongs to the
/// user it is copied for. A symbolic link that is named as a source is followed, others are copied as links. Files
/// already there are replaced, each in one step; directories are merged. Nothing is ever seen half written, and
/// symbolic links in the target are never followed.
///
/// A copy whose connection is cut goes on where it was, for as long as the guest answers again within half a minute.
///
/// Exclude patterns are rsync's: '*.o' is a name at any depth, '/a' is at the copy's top, 'b/' is a directory, 'c/d'
/// the end of a path; '**' crosses slashes.
///
/// Exit codes: 0 where all was copied; 1 where some entries were not, each named on stderr; 125 where the copy failed.
#[derive(Debug, Parser)]
#[command(verbatim_doc_comment)]
pub struct Cp {
    /// What to copy: VM:PATH or a path here, or - for a tar archive on stdin
    #[arg(required = true, value_name = "SOURCE", add = crate::cli::complete::paths())]
    sources: Vec<OsString>,
    /// Where to: VM:PATH or a path here, or - for a tar archive on stdout
    #[arg(value_name = "TARGET", add = crate::cli::complete::paths())]
    target: OsString,
    /// The guest user whose files they are [default: the VM's, or the guest's only human user]
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Leave out what matches; may be given several times
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<OsString>,
    /// Keep set-user-id and set-group-id bits
    #[arg(long)]
    special_bits: bool,
    /// Report extended attributes that cannot be kept
    #[arg(long)]
    strict: bool,
    /// Show no progress, and no single problems
    #[arg(short, long)]
    quiet: bool,
    /// Show progress even where stderr is no terminal
    #[arg(long, conflicts_with = "quiet")]
    progress: bool,
    /// Tell what was copied as one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: Reach,
}

/// One side of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// In a guest; the VM is empty where `HOSPES_VM` names it.
    Guest(String, Vec<u8>),
    /// On this machine.
    Here(Vec<u8>),
    /// A tar archive on stdin or stdout.
    Tar,
}

impl Place {
    /// A word of the command line. `VM:PATH` is a guest's where the part before the colon could be a VM's name.
    fn parse(word: &OsStr) -> Self {
        let bytes = word.as_bytes();
        if bytes == b"-" {
            return Self::Tar;
        }
        let Some(colon) = bytes.iter().position(|byte| *byte == b':') else {
            return Self::Here(bytes.to_vec());
        };
        let (name, path) = (&bytes[..colon], &bytes[colon + 1..]);
        // The home itself: a relative path that says so.
        let path = if path.is_empty() { b"." } else { path };
        match std::str::from_utf8(name) {
            Ok(name) if name.is_empty() || name.parse::<VmName>().is_ok() => {
                Self::Guest(name.to_owned(), path.to_vec())
            }
            _ => Self::Here(bytes.to_vec()),
        }
    }
}

/// What the command line comes to.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    Push { vm: String, sources: Vec<Vec<u8>>, target: Vec<u8> },
    Untar { vm: String, target: Vec<u8> },
    Pull { vm: String, sources: Vec<Vec<u8>>, target: Vec<u8> },
    Tar { vm: String, sources: Vec<Vec<u8>> },
}

impl Way {
    fn find(sources: &[OsString], target: &OsStr) -> Result<Self, CommandError> {
        let target = Place::parse(target);
        let sources: Vec<Place> = sources.iter().map(|word| Place::parse(word)).collect();
        if let (Place::Guest(vm, path), [Place::Tar]) = (&target, sources.as_slice()) {
            return Ok(Self::Untar { vm: vm.clone(), target: path.clone() });
        }
        if sources.contains(&Place::Tar) {
            return Err(CommandError::usage("A tar archive on stdin is the only source, and goes into a VM"));
        }
        if let Place::Guest(vm, target) = target {
            let here = sources.into_iter().map(|place| match place {
                Place::Here(path) => Ok(path),
                _ => Err(CommandError::usage("Both sides are in VMs")
                    .hint("Copy by way of this machine: hospes cp A:PATH - | hospes cp - B:PATH")),
            });
            return Ok(Self::Push { vm, sources: here.collect::<Result<_, _>>()?, target });
        }
        let mut names = Vec::new();
        let mut paths = Vec::new();
        for place in sources {
            let Place::Guest(vm, path) = place else {
                return Err(CommandError::usage("Neither side is in a VM")
                    .hint("A guest's path is written VM:PATH, as in hospes cp file dev:/tmp"));
            };
            names.push(vm);
            paths.push(path);
        }
        let vm = names.first().cloned().unwrap_or_default();
        if names.iter().any(|name| *name != vm) {
            return Err(
                CommandError::usage("The sources are in several VMs").hint("Copy from each on its own")
            );
        }
        Ok(match target {
            Place::Here(target) => Self::Pull { vm, sources: paths, target },
            _ => Self::Tar { vm, sources: paths },
        })
    }

    fn vm(&self) -> &str {
        match self {
            Self::Push { vm, .. } | Self::Untar { vm, .. } | Self::Pull { vm, .. } | Self::Tar { vm, .. } => {
                vm
            }
        }
    }
}

impl Verb for Cp {
    const NAME: &'static str = "cp";
    const VM: VmPlace = VmPlace::None;

    fn run(self) -> Result<u8, CommandError> {
        let way = Way::find(&self.sources, &self.target)?;
        if self.json && matches!(way, Way::Tar { .. }) {
            return Err(CommandError::usage("--json and a tar archive cannot both be on stdout"));
        }
        let client = self.client(way.vm())?;
        let progress = Arc::new(Progress::default());
        let cancel = Cancel::default();
        let begun = Instant::now();
        interruptible(&cancel)?;
        let bar = (self.progress || (!self.quiet && io::stderr().is_terminal()))
            .then(|| bar::Bar::start(Arc::clone(&progress)));
        let copied = self.perform(way, &client, &progress, bar.is_some(), &cancel);
        drop(bar);
        self.tell(&copied?, &client, begun)
    }
}

impl Cp {
    fn client(&self, vm: &str) -> Result<Client, CommandError> {
        if !vm.is_empty() {
            return self.reach.client(&vm.parse()?);
        }
        let default = std::env::var(VARIABLE).ok().filter(|name| !name.is_empty());
        let name = default.ok_or_else(|| {
            CommandError::usage("No VM was named").hint(format_args!(
                "Name one before the colon, or set {VARIABLE}; hospes list shows which there are"
            ))
        })?;
        self.reach.client(&name.parse()?)
    }

    fn perform(
        &self,
        way: Way,
        client: &Client,
        progress: &Arc<Progress>,
        count: bool,
        cancel: &Cancel,
    ) -> Result<Copied, CommandError> {
        let exclude: Vec<Vec<u8>> =
            self.exclude.iter().map(|pattern| pattern.as_os_str().as_bytes().to_vec()).collect();
        let patterns = Exclude::new(&exclude).map_err(CommandError::usage)?;
        let user = self.user.clone().or_else(|| client.vm().spec.user.clone()).unwrap_or_default();
        let id = CopyId(
            identity::random()
                .map_err(|error| CommandError::local(format_args!("Cannot find random bytes: {error}")))?,
        );
        match way {
            Way::Push { sources, target, .. } => {
                let sources = sources_of(&sources)?;
                let into = into(&sources);
                let reader = Reader::new(sources, patterns, true, Arc::clone(progress))
                    .map_err(|error| ours(&error))?;
                self.push(client, user, id, target, into, Box::new(reader), cancel)
            }
            Way::Untar { target, .. } => {
                if io::stdin().is_terminal() {
                    return Err(CommandError::usage("Stdin is a terminal and no tar archive"));
                }
                let reader = TarReader::new(io::stdin(), patterns, Arc::clone(progress));
                self.push(client, user, id, target, true, Box::new(reader), cancel)
            }
            Way::Pull { sources, target, .. } => {
                let names = sources_of(&sources)?;
                let target = Target::new(&target, into(&names)).only(&names);
                let options =
                    Options { special_bits: self.special_bits, strict: self.strict, report_skipped: true };
                let writer =
                    Writer::new(target, options, Arc::clone(progress)).map_err(|error| ours(&error))?;
                pull(client, &Pull { user, id, sources, exclude, count }, Box::new(writer), cancel)
            }
            Way::Tar { sources, .. } => {
                if io::stdout().is_terminal() {
                    return Err(CommandError::usage("Stdout is a terminal: no tar archive is written to it"));
                }
                let out = io::BufWriter::with_capacity(64 * 1024, io::stdout());
                let writer = TarWriter::new(out, &sources_of(&sources)?, Arc::clone(progress));
                pull(client, &Pull { user, id, sources, exclude, count }, Box::new(writer), cancel)
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a request's fields and what runs it")]
    fn push(
        &self,
        client: &Client,
        user: String,
        id: CopyId,
        target: Vec<u8>,
        into: bool,
        producer: Box<dyn Produce>,
        cancel: &Cancel,
    ) -> Result<Copied, CommandError> {
        let push = Push { user, id, target, into, special_bits: self.special_bits, strict: self.strict };
        copy::push(client, &push, producer, cancel).map_err(CommandError::from)
    }

    fn tell(&self, copied: &Copied, client: &Client, begun: Instant) -> Result<u8, CommandError> {
        if copied.greeting.as_ref().is_some_and(|greeting| greeting.verdict == Verdict::FirstUse)
            && let Some(greeting) = &copied.greeting
        {
            let key = greeting.session.peer;
            ui::note(format_args!("{} is known by its key {key} from now on", client.vm().name));
        }
        let count = copied.ours.count() + copied.theirs.count();
        if self.json {
            ui::json(&Told::new(copied, begun))?;
        } else if !self.quiet {
            list(&copied.ours);
            list(&copied.theirs);
        }
        let unnamed = count - (copied.ours.named().len() + copied.theirs.named().len()) as u64;
        if unnamed > 0 && !self.quiet && !self.json {
            ui::warn(format_args!("and {unnamed} more"));
        }
        Ok(if count == 0 { 0 } else { SOME_FAILED })
    }
}

fn pull(
    client: &Client,
    request: &Pull,
    consumer: Box<dyn Consume>,
    cancel: &Cancel,
) -> Result<Copied, CommandError> {
    copy::pull(client, request, consumer, cancel).map_err(CommandError::from)
}

fn sources_of(paths: &[Vec<u8>]) -> Result<Vec<Source>, CommandError> {
    paths.iter().map(|path| Source::new(path).map_err(|error| ours(&error))).collect()
}

fn into(sources: &[Source]) -> bool {
    sources.len() > 1 || sources.iter().any(Source::is_contents)
}

fn ours(error: &WireError) -> CommandError {
    CommandError::refused(error)
}

fn list(problems: &Problems) {
    for Problem { path, error } in problems.named() {
        ui::warn(format_args!("{}: {}", printable::bytes(path), printable::line(&error.message)));
    }
}

/// The first interrupt ends the copy in order, the second at once.
fn interruptible(cancel: &Cancel) -> Result<(), CommandError> {
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        let flag = cancel.flag();
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&flag))
            .and_then(|_| signal_hook::flag::register(signal, flag))
            .map_err(|error| CommandError::io("Cannot watch for signals", &error))?;
    }
    Ok(())
}

impl From<CopyError> for CommandError {
    fn from(error: CopyError) -> Self {
        if let Some(refusal) = error.refusal() {
            return Self::refused(refusal);
        }
        match error {
            CopyError::Client(error) => error.into(),
            CopyError::Request(error) => Self::usage(error),
            CopyError::Lost { .. } => {
                Self::new("lost", &error).hint("What is in place is whole: copy the rest again")
            }
            CopyError::Transfer(hospes_tree::transfer::TransferError::Ours(error)) => ours(&error),
            CopyError::Transfer(hospes_tree::transfer::TransferError::Cut { .. }) => {
                Self::new("lost", &error).hint("What is in place is whole: copy the rest again")
            }
            CopyError::Transfer(_) | CopyError::Report { .. } => Self::new("protocol", &error),
        }
    }
}

/// What `--json` tells.
#[derive(Serialize)]
struct Told {
    files: u64,
    directories: u64,
    links: u64,
    bytes: u64,
    seconds: f64,
    problems: u64,
    entries: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    path: String,
    kind: String,
    message: String,
}

impl Told {
    fn new(copied: &Copied, begun: Instant) -> Self {
        let entries = copied.ours.named().iter().chain(copied.theirs.named());
        Self {
            files: copied.done.files,
            directories: copied.done.directories,
            links: copied.done.links,
            bytes: copied.done.bytes,
            seconds: begun.elapsed().as_secs_f64(),
            problems: copied.ours.count() + copied.theirs.count(),
            entries: entries
                .map(|Problem { path, error }| Entry {
                    path: OsString::from_vec(path.clone()).to_string_lossy().into_owned(),
                    kind: error.kind.name().unwrap_or("other").to_ascii_lowercase(),
                    message: error.message.clone(),
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way(line: &str) -> Result<Way, CommandError> {
        let mut words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        let target = words.pop().unwrap();
        Way::find(&words, &target)
    }

    #[test]
    fn one_side_is_a_guests() {
        let bytes = |text: &str| text.as_bytes().to_vec();
        assert_eq!(
            way("a ./b:c dev:/x").unwrap(),
            Way::Push { vm: "dev".into(), sources: vec![bytes("a"), bytes("./b:c")], target: bytes("/x") }
        );
        assert_eq!(
            way(":a :b/ .").unwrap(),
            Way::Pull { vm: String::new(), sources: vec![bytes("a"), bytes("b/")], target: bytes(".") }
        );
        assert_eq!(
            way("a dev:").unwrap(),
            Way::Push { vm: "dev".into(), sources: vec![bytes("a")], target: bytes(".") }
        );
        assert_eq!(way("- dev:d").unwrap(), Way::Untar { vm: "dev".into(), target: bytes("d") });
        assert_eq!(way("dev:d -").unwrap(), Way::Tar { vm: "dev".into(), sources: vec![bytes("d")] });
        assert_eq!(
            way("dev:a:b x").unwrap(),
            Way::Pull { vm: "dev".into(), sources: vec![bytes("a:b")], target: bytes("x") }
        );
        for wrong in ["a b", "dev:a other:b .", "dev:a dev:b other:c", "- a", "a -", "- b dev:c", "dev:a b ."]
        {
            assert!(way(wrong).is_err(), "{wrong}");
        }
    }
}
