//! `hospes file`

mod show;

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;

use clap::{Args, Parser, Subcommand};
use hospes_protocol::error::ErrorKind;
use hospes_protocol::file::{Entry, FileReply, Verb as Wire};

use self::show::{Name, Told, ToldEntry, long};
use crate::cli::target::Reach;
use crate::cli::{Verb, VmPlace};
use crate::client::Client;
use crate::command_error::CommandError;
use crate::file::{self, FileError};
use crate::ui;
use crate::vm::VmName;

/// The guest's file system said no, as for stat(1) and its kin.
const REFUSED: u8 = 1;

/// Read and change files in a VM, without a shell
///
/// Paths are the guest's and go there as they are. A relative one starts at the guest user's home, so it is written
/// notes/todo and not ~/notes/todo.
///
/// Names that go to a terminal are shown with escapes in place of what a terminal would obey; into a pipe or file they
/// go as they are, one to a line, or with a zero byte behind each for --null.
///
/// With --json: stat {"entries": [ENTRY, …]}, ls {"entries": [ENTRY, …]}, mktemp {"path"}, write {"bytes"}, and {} for the
/// others. ENTRY is {"name", "type", "mode", "size", "modified", "modified_ns", "uid", "gid", "user", "group", "links",
/// "target"}: "type" is file, directory, symlink, fifo, socket, char, block or unknown; "mode" octal digits;
/// "modified" seconds since 1970. A name that is no UTF-8 has its bytes in "name_hex", a target in "target_hex".
///
/// Exit codes: 0; 1 where the guest refused (no such file, no permission); 125 where Hospes failed.
#[derive(Debug, Parser)]
pub struct File {
    /// The VM
    #[arg(add = crate::cli::complete::vms())]
    vm: VmName,
    /// The guest user who acts [default: the VM's, or the guest's only human user]
    #[arg(short, long, global = true)]
    user: Option<String>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    reach: Reach,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Describe files
    Stat(Stat),
    /// List a directory
    Ls(Ls),
    /// Make directories
    Mkdir(Mkdir),
    /// Remove files, links (never what they point to) and empty directories
    Rm(Rm),
    /// Rename a file, or move it into a directory
    Mv(Mv),
    /// Make a new file or directory for the user alone, and print its path
    Mktemp(Mktemp),
    /// Print a file's bytes
    Read(Read),
    /// Write stdin to a file, all or nothing: it is replaced when the last byte has arrived
    Write(WriteFile),
}

#[derive(Debug, Args)]
struct Stat {
    /// Which
    #[arg(required = true, value_name = "PATH", add = crate::cli::complete::paths_in_vm())]
    paths: Vec<OsString>,
    /// Describe what symbolic links point to
    #[arg(short = 'L', long)]
    dereference: bool,
}

#[derive(Debug, Args)]
struct Ls {
    /// Which; the user's home without
    #[arg(value_name = "PATH", default_value = ".", add = crate::cli::complete::paths_in_vm())]
    path: OsString,
    /// Describe each entry
    #[arg(short, long)]
    long: bool,
    /// Names that begin with a dot too
    #[arg(short, long)]
    all: bool,
    /// A zero byte behind each name, and names as they are
    #[arg(short = '0', long, conflicts_with_all = ["json", "long"])]
    null: bool,
    /// As they come, and not sorted: for very large directories
    #[arg(short = 'U', long, conflicts_with = "json")]
    unsorted: bool,
}

#[derive(Debug, Args)]
struct Mkdir {
    /// Which
    #[arg(required = true, value_name = "PATH", add = crate::cli::complete::paths_in_vm())]
    paths: Vec<OsString>,
    /// Parents too, and no error where it exists
    #[arg(short, long)]
    parents: bool,
    /// Permission bits, in octal [default: 777 less the umask]
    #[arg(short, long, value_parser = mode)]
    mode: Option<u32>,
}

#[derive(Debug, Args)]
struct Rm {
    /// Which
    #[arg(required = true, value_name = "PATH", add = crate::cli::complete::paths_in_vm())]
    paths: Vec<OsString>,
    /// Directories with all that is in them
    #[arg(short, long)]
    recursive: bool,
    /// No error where one is missing
    #[arg(short, long)]
    force: bool,
}

#[derive(Debug, Args)]
struct Mv {
    /// From
    #[arg(add = crate::cli::complete::paths_in_vm())]
    from: OsString,
    /// To; a directory takes it under its own name
    #[arg(add = crate::cli::complete::paths_in_vm())]
    to: OsString,
    /// Never replace what is there
    #[arg(short, long)]
    no_clobber: bool,
    /// Take TO as the new name, even where it is a directory
    #[arg(short = 'T', long)]
    no_target_directory: bool,
}

#[derive(Debug, Args)]
struct Mktemp {
    /// What its name begins with
    #[arg(default_value = "tmp.")]
    prefix: OsString,
    /// What its name ends with
    #[arg(long, default_value = "")]
    suffix: OsString,
    /// A directory
    #[arg(short, long)]
    directory: bool,
    /// Where [default: the user's TMPDIR, or /tmp]
    #[arg(short = 'p', long = "in", value_name = "DIR", add = crate::cli::complete::paths_in_vm())]
    parent: Option<OsString>,
}

#[derive(Debug, Args)]
struct Read {
    /// Which
    #[arg(add = crate::cli::complete::paths_in_vm())]
    path: OsString,
    /// From this byte
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    offset: u64,
    /// At most so many bytes
    #[arg(long, value_name = "BYTES")]
    length: Option<u64>,
}

#[derive(Debug, Args)]
struct WriteFile {
    /// Which. A symbolic link is followed
    #[arg(add = crate::cli::complete::paths_in_vm())]
    path: OsString,
    /// Behind what is there, in place, as bytes arrive
    #[arg(short, long)]
    append: bool,
    /// Never replace what is there
    #[arg(short, long)]
    no_clobber: bool,
    /// Permission bits, in octal [default: the old file's, or 666 less the umask]
    #[arg(short, long, value_parser = mode)]
    mode: Option<u32>,
}

impl Verb for File {
    const NAME: &'static str = "file";
    const VM: VmPlace = VmPlace::First;

    fn run(self) -> Result<u8, CommandError> {
        let client = self.reach.client(&self.vm)?;
        let user = client.user(self.user);
        let act = Act { client, user, json: self.json };
        match self.what {
            What::Stat(stat) => act.stat(stat),
            What::Ls(ls) => act.ls(ls),
            What::Mkdir(mkdir) => {
                act.each(mkdir.paths, |path| Wire::Mkdir { path, parents: mkdir.parents, mode: mkdir.mode })
            }
            What::Rm(rm) => {
                act.each(rm.paths, |path| Wire::Remove { path, recursive: rm.recursive, force: rm.force })
            }
            What::Mv(mv) => act.mv(mv),
            What::Mktemp(mktemp) => act.mktemp(mktemp),
            What::Read(read) => act.read(read),
            What::Write(write) => act.write(write),
        }?;
        Ok(0)
    }
}

struct Act {
    client: Client,
    user: String,
    json: bool,
}

impl Act {
    fn ask(&self, verb: Wire) -> Result<FileReply, CommandError> {
        if !verb.paths_are_sane() {
            return Err(CommandError::usage("A path is empty, too long for Linux, or has a zero byte"));
        }
        Ok(file::simple(&self.client, &self.user, verb)?)
    }

    /// Does one thing to each path. The first failure ends it.
    fn each(&self, paths: Vec<OsString>, verb: impl Fn(Vec<u8>) -> Wire) -> Result<(), CommandError> {
        for path in paths {
            self.ask(verb(path.into_vec()))?;
        }
        self.done()
    }

    fn done(&self) -> Result<(), CommandError> {
        if self.json { ui::line("{}") } else { Ok(()) }
    }

    fn stat(&self, stat: Stat) -> Result<(), CommandError> {
        let mut entries = Vec::new();
        for name in stat.paths {
            entries.push(self.describe(name.into_vec(), stat.dereference)?);
        }
        self.print_long(&entries)
    }

    fn describe(&self, name: Vec<u8>, follow: bool) -> Result<Entry, CommandError> {
        match self.ask(Wire::Stat { path: name.clone(), follow })? {
            FileReply::Stat(stat) => Ok(Entry { name, stat }),
            reply => Err(file::wrong(&reply).into()),
        }
    }

    fn ls(&self, ls: Ls) -> Result<(), CommandError> {
        let mut out = Output::new();
        let mut entries = Vec::new();
        let mut kept = 0;
        let path = ls.path.into_vec();
        let listed = file::list(&self.client, &self.user, path.clone(), |entry| {
            if !ls.all && entry.name.starts_with(b".") {
                return Ok(());
            }
            if ls.unsorted && !ls.long {
                return out.name(&entry.name, ls.null);
            }
            kept += size_of::<Entry>() + show::text_len(&entry);
            if kept > LISTING {
                return Err(FileError::Listing { max: LISTING });
            }
            entries.push(entry);
            Ok(())
        });
        match listed {
            // What is no directory is listed itself, as ls(1) does.
            Err(FileError::Guest(error)) if error.kind == ErrorKind::FILE_KIND => {
                entries = vec![self.describe(path, false)?];
            }
            listed => drop(listed?),
        }
        if !ls.unsorted {
            entries.sort_by(|a, b| a.name.cmp(&b.name));
        }
        if self.json || ls.long {
            return self.print_long(&entries);
        }
        for entry in &entries {
            out.name(&entry.name, ls.null)?;
        }
        Ok(out.flush()?)
    }

    fn print_long(&self, entries: &[Entry]) -> Result<(), CommandError> {
        if self.json {
            return ui::json(&Told { entries: entries.iter().map(ToldEntry::from).collect() });
        }
        let mut out = Output::new();
        for line in long(entries, out.terminal) {
            out.line(&line)?;
        }
        Ok(out.flush()?)
    }

    fn mv(&self, mv: Mv) -> Result<(), CommandError> {
        let (from, mut to) = (mv.from.into_vec(), mv.to.into_vec());
        if !mv.no_target_directory && self.is_directory(&to)? {
            let name = from.split(|b| *b == b'/').rfind(|part| !part.is_empty()).unwrap_or_default();
            if to.last() != Some(&b'/') {
                to.push(b'/');
            }
            to.extend_from_slice(name);
        }
        self.ask(Wire::Rename { from, to, replace: !mv.no_clobber })?;
        self.done()
    }

    fn is_directory(&self, path: &[u8]) -> Result<bool, CommandError> {
        match file::simple(&self.client, &self.user, Wire::Stat { path: path.to_vec(), follow: true }) {
            Ok(FileReply::Stat(stat)) => Ok(show::kind(stat.mode) == "directory"),
            Ok(reply) => Err(file::wrong(&reply).into()),
            // Whatever is wrong with it, the rename will say so.
            Err(FileError::Guest(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn mktemp(&self, mktemp: Mktemp) -> Result<(), CommandError> {
        let reply = self.ask(Wire::Temp {
            directory: mktemp.parent.map(OsString::into_vec),
            prefix: mktemp.prefix.into_vec(),
            suffix: mktemp.suffix.into_vec(),
            make_directory: mktemp.directory,
        })?;
        let FileReply::Path(path) = reply else { return Err(file::wrong(&reply).into()) };
        if self.json {
            return ui::json(&show::ToldPath::from(&path[..]));
        }
        let mut out = Output::new();
        out.name(&path, false)?;
        Ok(out.flush()?)
    }

    fn read(&self, read: Read) -> Result<(), CommandError> {
        let verb = Wire::Read { path: read.path.into_vec(), offset: read.offset, len: read.length };
        let mut out = io::stdout().as_fd().try_clone_to_owned().map(std::fs::File::from);
        let out = out.as_mut().map_err(|error| CommandError::io("Cannot open the output", error))?;
        match file::read(&self.client, &self.user, verb, |bytes| out.write_all(bytes)) {
            // Whoever reads has enough: no failure of ours.
            Err(FileError::Local { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => Ok(result.map(drop)?),
        }
    }

    fn write(&self, write: WriteFile) -> Result<(), CommandError> {
        let verb = Wire::Write {
            path: write.path.into_vec(),
            append: write.append,
            replace: !write.no_clobber,
            mode: write.mode,
        };
        let bytes = file::write(&self.client, &self.user, verb, io::stdin().as_fd())?;
        if self.json { ui::json(&show::ToldBytes { bytes }) } else { Ok(()) }
    }
}

/// Bytes of a listing that are kept to be sorted or aligned: a million files and more.
const LISTING: usize = 256 * 1024 * 1024;

/// Names and lines on stdout. A reader that went away ends it without a word.
struct Output {
    out: io::BufWriter<io::StdoutLock<'static>>,
    terminal: bool,
    gone: bool,
}

impl Output {
    fn new() -> Self {
        let terminal = io::IsTerminal::is_terminal(&io::stdout());
        Self { out: io::BufWriter::new(io::stdout().lock()), terminal, gone: false }
    }

    fn name(&mut self, name: &[u8], null: bool) -> Result<(), FileError> {
        if null { self.put(name, 0) } else { self.line(&Name(name).to(self.terminal)) }
    }

    fn line(&mut self, line: &[u8]) -> Result<(), FileError> {
        self.put(line, b'\n')
    }

    fn put(&mut self, bytes: &[u8], end: u8) -> Result<(), FileError> {
        let written = self.out.write_all(bytes).and_then(|()| self.out.write_all(&[end]));
        self.judge(written)
    }

    fn flush(&mut self) -> Result<(), FileError> {
        let flushed = self.out.flush();
        self.judge(flushed)
    }

    fn judge(&mut self, result: io::Result<()>) -> Result<(), FileError> {
        match result {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.gone = true;
                Ok(())
            }
            Err(source) if !self.gone => Err(FileError::Local { act: "write the output", source }),
            _ => Ok(()),
        }
    }
}

/// Reads permission bits as chmod(1) does octal ones.
fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err("permission bits are octal digits, as 644 or 0700".to_owned()),
    }
}

impl From<FileError> for CommandError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Client(error) => error.into(),
            FileError::Connection(error) => error.into(),
            FileError::Guest(error) => Self { code: REFUSED, ..Self::refused(&error) },
            FileError::Protocol(_) => Self::new("protocol", error),
            FileError::Listing { .. } => {
                Self::new("limit", error).hint("--unsorted prints names as they come and keeps none")
            }
            FileError::Local { act, source } => Self::io(format_args!("Cannot {act}"), &source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal() {
        assert_eq!((mode("644"), mode("02755")), (Ok(0o644), Ok(0o2755)));
        assert!(mode("8").is_err() && mode("u+x").is_err() && mode("17777").is_err());
    }

    #[test]
    fn options_stand_before_and_behind_the_verb() {
        let parse = |line: &str| File::try_parse_from(line.split(' '));
        let file = parse("file dev ls -l --json -u root /x").unwrap();
        assert!(file.json && file.user.as_deref() == Some("root"));
        assert!(parse("file -u root dev --json rm -rf a b").is_ok());
        assert!(parse("file dev rm").is_err() && parse("file dev").is_err());
    }
}
