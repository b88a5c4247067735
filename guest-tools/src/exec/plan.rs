//! What to execute, from what was asked: pure.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;

use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::exec::Exec;
use nix::errno::Errno;

use super::environment::{Account, Variables};
use crate::sys::clone::{CloneError, Step};

/// Everything about a command that is known before it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Where the program may be, in the order of the command's `PATH`.
    pub(crate) paths: Vec<CString>,
    /// Arguments, the program's own name first.
    pub(crate) argv: Vec<CString>,
    /// Environment, `NAME=value`.
    pub(crate) env: Vec<CString>,
    /// Working directory.
    pub(crate) cwd: CString,
    /// Whether the request named that directory: then it must be there.
    pub(crate) cwd_asked: bool,
    /// The `PATH` that was searched, where one was.
    searched: Option<Vec<u8>>,
}

impl Plan {
    /// The plan for a request that was held against its limits.
    ///
    /// # Errors
    /// `PROTOCOL` for a NUL byte, which [`Exec::check`] would have found.
    pub(crate) fn new(request: &Exec, account: &Account, base: &Variables) -> Result<Self, WireError> {
        let mut variables = base.clone();
        if let Some(terminal) = &request.terminal {
            let term = if terminal.term.is_empty() { "dumb" } else { &terminal.term };
            variables.insert(b"TERM".to_vec(), term.into());
        }
        for (name, value) in &request.env {
            variables.insert(name.clone(), value.clone());
        }
        let shell = account.shell.as_os_str().as_bytes();
        let (program, argv) = program(request, shell);
        let (paths, searched) = candidates(&program, variables.get(b"PATH".as_slice()));
        let home = account.home.as_os_str().as_bytes();
        let cwd = match &request.cwd {
            Some(cwd) if cwd.starts_with(b"/") => cwd.clone(),
            Some(cwd) => [home, b"/", cwd].concat(),
            None => home.to_vec(),
        };
        Ok(Self {
            paths: strings(paths)?,
            argv: strings(argv)?,
            env: strings(variables.into_iter().map(|(name, value)| [&name[..], b"=", &value].concat()))?,
            cwd: string(cwd)?,
            cwd_asked: request.cwd.is_some(),
            searched,
        })
    }

    /// The kernel's refusal in the words of who asked.
    pub(crate) fn error(&self, error: CloneError) -> WireError {
        let CloneError { step, errno } = error;
        let why = errno.desc();
        match step {
            Step::Clone => {
                WireError::new(ErrorKind::OS, format!("The guest could not make a process: {why}"))
                    .hint("The user may have reached the limit of processes (ulimit -u)")
            }
            Step::Stdio => {
                WireError::new(ErrorKind::OS, format!("The guest could not set up the command: {why}"))
            }
            Step::Cwd => {
                let kind = match errno {
                    Errno::ENOENT => ErrorKind::NOT_FOUND,
                    Errno::ENOTDIR => ErrorKind::FILE_KIND,
                    Errno::EACCES => ErrorKind::PERMISSION,
                    _ => ErrorKind::OS,
                };
                let cwd = self.cwd.to_string_lossy();
                WireError::new(kind, format!("The working directory {cwd} cannot be entered: {why}"))
            }
            Step::Exec => self.exec_error(errno),
        }
    }

    fn exec_error(&self, errno: Errno) -> WireError {
        let name = self.paths.first().map_or("", |path| path.to_str().unwrap_or(""));
        let name = if self.searched.is_some() { name.rsplit('/').next().unwrap_or(name) } else { name };
        let refused = |what: &str| WireError::new(ErrorKind::NOT_EXECUTABLE, format!("{name} {what}"));
        match (errno, &self.searched) {
            (Errno::ENOENT, Some(path)) => {
                WireError::new(ErrorKind::NOT_FOUND, format!("No program {name} in the guest"))
                    .hint(format!("The command's PATH is {}", String::from_utf8_lossy(path)))
            }
            (Errno::ENOENT, None) => {
                WireError::new(ErrorKind::NOT_FOUND, format!("No program {name} in the guest"))
                    .hint("Where the file is there, what its first line or its header names is not")
            }
            (Errno::EACCES, _) => refused("cannot be executed: permission denied").hint(
                "It is no regular file, is not marked executable, or its file system is mounted noexec",
            ),
            (Errno::ENOEXEC, _) => refused("cannot be executed: it is no program for this machine"),
            (Errno::E2BIG, _) => refused("cannot be executed: its arguments and environment are too long")
                .hint("Give them in a file, or by the standard input"),
            (other, _) => refused(&format!("cannot be executed: {}", other.desc())),
        }
    }
}

/// The program and its arguments. A login shell runs what follows after its start-up files, by a script that is always
/// the same: the arguments are its positional parameters and never part of it.
fn program(request: &Exec, shell: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let shell_name = base_name(shell);
    let login_name = [b"-", shell_name].concat();
    match (request.argv.split_first(), request.login) {
        (None, true) => (shell.to_vec(), vec![login_name]),
        (None, false) => (shell.to_vec(), vec![shell_name.to_vec()]),
        (Some((program, _)), false) => (program.clone(), request.argv.clone()),
        (Some(_), true) => {
            let mut argv = vec![login_name, b"-c".to_vec()];
            match shell_name {
                b"fish" => argv.push(b"exec $argv".to_vec()),
                b"csh" | b"tcsh" => argv.push(b"exec $argv:q".to_vec()),
                _ => argv.extend([b"exec \"$@\"".to_vec(), shell_name.to_vec()]),
            }
            argv.extend_from_slice(&request.argv);
            (shell.to_vec(), argv)
        }
    }
}

/// Where a program may be, and the `PATH` that says so. A name with a slash is a path already. An empty entry is the
/// working directory, as execvp(3) has it.
fn candidates(program: &[u8], path: Option<&Vec<u8>>) -> (Vec<Vec<u8>>, Option<Vec<u8>>) {
    if program.contains(&b'/') || program.is_empty() {
        return (vec![program.to_vec()], None);
    }
    let path = path.map_or(&b"/usr/bin:/bin"[..], Vec::as_slice);
    let in_directory = |directory: &[u8]| match directory {
        b"" => [b"./", program].concat(),
        directory => [directory, b"/", program].concat(),
    };
    (path.split(|byte| *byte == b':').map(in_directory).collect(), Some(path.to_vec()))
}

fn base_name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or(path)
}

fn strings(bytes: impl IntoIterator<Item = Vec<u8>>) -> Result<Vec<CString>, WireError> {
    bytes.into_iter().map(string).collect()
}

fn string(bytes: Vec<u8>) -> Result<CString, WireError> {
    CString::new(bytes).map_err(|_| WireError::protocol("The request has a NUL byte where a string ends"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hospes_protocol::exec::Terminal;

    fn account(shell: &str) -> Account {
        Account { uid: 7, name: "ada".into(), home: "/home/ada".into(), shell: shell.into() }
    }

    fn plan(request: &Exec, shell: &str) -> Plan {
        let base = [(b"PATH".to_vec(), b"/a::/b".to_vec()), (b"LANG".to_vec(), b"C".to_vec())];
        Plan::new(request, &account(shell), &base.into_iter().collect()).unwrap()
    }

    fn words(strings: &[CString]) -> Vec<&str> {
        strings.iter().map(|string| string.to_str().unwrap()).collect()
    }

    fn asked(argv: &[&str]) -> Exec {
        Exec { argv: argv.iter().map(|word| word.as_bytes().to_vec()).collect(), ..Exec::default() }
    }

    #[test]
    fn a_name_is_searched_in_the_commands_own_path() {
        assert_eq!(words(&plan(&asked(&["make", "all"]), "/bin/sh").paths), ["/a/make", "./make", "/b/make"]);
        assert_eq!(words(&plan(&asked(&["./make"]), "/bin/sh").paths), ["./make"]);
        let own = Exec { env: vec![(b"PATH".to_vec(), b"/c".to_vec())], ..asked(&["make"]) };
        assert_eq!(words(&plan(&own, "/bin/sh").paths), ["/c/make"]);
    }

    #[test]
    fn no_arguments_mean_the_login_shell() {
        let shell = plan(&asked(&[]), "/usr/bin/zsh");
        assert_eq!((words(&shell.paths), words(&shell.argv)), (vec!["/usr/bin/zsh"], vec!["zsh"]));
        let login = plan(&Exec { login: true, ..asked(&[]) }, "/usr/bin/zsh");
        assert_eq!(words(&login.argv), ["-zsh"]);
    }

    #[test]
    fn a_login_shell_gets_a_commands_arguments_as_they_are() {
        let request = Exec { login: true, ..asked(&["echo", "a b; c", "$HOME"]) };
        let login = plan(&request, "/bin/bash");
        assert_eq!(words(&login.argv), ["-bash", "-c", "exec \"$@\"", "bash", "echo", "a b; c", "$HOME"]);
        assert_eq!(words(&plan(&request, "/usr/bin/fish").argv[..4]), ["-fish", "-c", "exec $argv", "echo"]);
    }

    #[test]
    fn the_requests_environment_comes_last() {
        let request = Exec {
            env: vec![(b"LANG".to_vec(), b"de".to_vec()), (b"X".to_vec(), b"1=2".to_vec())],
            terminal: Some(Terminal { term: "xterm".into(), size: Default::default() }),
            ..asked(&["env"])
        };
        assert_eq!(words(&plan(&request, "/bin/sh").env), ["LANG=de", "PATH=/a::/b", "TERM=xterm", "X=1=2"]);
    }

    #[test]
    fn a_relative_directory_starts_at_home() {
        let cwd = |cwd: Option<&str>| {
            let request = Exec { cwd: cwd.map(|cwd| cwd.as_bytes().to_vec()), ..asked(&["x"]) };
            plan(&request, "/bin/sh").cwd.into_string().unwrap()
        };
        assert_eq!([cwd(None), cwd(Some("src")), cwd(Some("/"))], ["/home/ada", "/home/ada/src", "/"]);
    }

    #[test]
    fn refusals_say_what_and_whose_fault() {
        let missing =
            plan(&asked(&["nosuch"]), "/bin/sh").error(CloneError { step: Step::Exec, errno: Errno::ENOENT });
        assert_eq!(missing.kind, ErrorKind::NOT_FOUND);
        assert!(
            missing.message.contains("No program nosuch") && missing.hint.contains("/a::/b"),
            "{missing:?}"
        );
        let cwd = Exec { cwd: Some(b"gone".to_vec()), ..asked(&["x"]) };
        let cwd = plan(&cwd, "/bin/sh").error(CloneError { step: Step::Cwd, errno: Errno::ENOENT });
        assert!(cwd.kind == ErrorKind::NOT_FOUND && cwd.message.contains("/home/ada/gone"), "{cwd:?}");
    }
}
