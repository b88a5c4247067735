//! `hospes ssh-config`

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use clap::Parser;

use crate::cli::{Verb, VmPlace};
use crate::command_error::CommandError;
use crate::registry::Registry;
use crate::ui;
use crate::vm::{Vm, VmName};

/// Our file, beside ssh's own.
const FILE: &str = "hospes_config";
/// What makes ssh read it. It stands first: inside a Host block it would count for that host alone.
const INCLUDE: &str = "Include hospes_config";

/// Print ssh settings with which ssh, rsync, git, Ansible and editors reach VMs by name
///
/// A VM needs no network for it, only an ssh server: hospes connect carries the connection.
///
///   hospes ssh-config --install
///   ssh dev; rsync -a src/ dev:src/; git clone dev:project
///
/// --install writes the settings of every VM (or of those named) to ~/.ssh/hospes_config and has ~/.ssh/config include
/// it; run it again after VMs were added. --uninstall takes both away.
#[derive(Debug, Parser)]
#[command(verbatim_doc_comment)]
pub struct SshConfig {
    /// Which; all without
    #[arg(add = crate::cli::complete::vms(), value_name = "VM")]
    vms: Vec<VmName>,
    /// Whom to log in as [default: the VM's user, or as ssh is set up]
    #[arg(short, long)]
    user: Option<String>,
    /// The guest's ssh port
    #[arg(short, long, default_value_t = 22, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Put them where ssh finds them
    #[arg(long)]
    install: bool,
    /// Take away what --install put there
    #[arg(long, conflicts_with_all = ["install", "vms", "user"])]
    uninstall: bool,
}

impl Verb for SshConfig {
    const NAME: &'static str = "ssh-config";
    const VM: VmPlace = VmPlace::None;

    fn run(self) -> Result<u8, CommandError> {
        if self.uninstall {
            uninstall(&ssh_directory()?).map_err(|error| CommandError::io("Cannot change ~/.ssh", &error))?;
            return Ok(0);
        }
        if let Some(user) = &self.user
            && !is_user(user)
        {
            return Err(CommandError::usage(format_args!("Not a user name: {user:?}")));
        }
        let registry = Registry::open()?;
        let names = if self.vms.is_empty() { registry.names()? } else { self.vms };
        let program = program()?;
        let mut text = String::new();
        for name in names {
            let vm = registry.load(&name)?;
            block(&vm, self.user.as_deref(), self.port, &program, &mut text);
        }
        if !self.install {
            return ui::line(text.trim_end()).map(|()| 0);
        }
        install(&ssh_directory()?, &text)
            .map_err(|error| CommandError::io("Cannot change ~/.ssh", &error))?;
        Ok(0)
    }
}

/// This program as a shell's word, as ssh wants it: a percent sign doubled.
fn program() -> Result<String, CommandError> {
    let path =
        std::env::current_exe().map_err(|error| CommandError::io("Cannot find this program", &error))?;
    let path = path
        .to_str()
        .filter(|path| !path.contains(char::is_control))
        .ok_or_else(|| CommandError::local(format_args!("ssh cannot be told the path {}", path.display())))?;
    Ok(shell_word(path).replace('%', "%%"))
}

fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,@".contains(c);
    if text.chars().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// What ssh's file and the guest's user database can both hold.
fn is_user(user: &str) -> bool {
    !user.is_empty()
        && !user.starts_with('-')
        && user.chars().all(|c| c.is_ascii_alphanumeric() || "._-@$\\".contains(c))
}

/// VM names are letters, digits, dots, dashes and underscores: they need no quoting.
fn block(vm: &Vm, user: Option<&str>, port: u16, program: &str, out: &mut String) {
    let name = &vm.name;
    let _ = writeln!(out, "Host {name}");
    let _ = writeln!(out, "    ProxyCommand {program} connect {name} tcp:{port}");
    // The key belongs to the VM, whatever its address is today.
    let _ = writeln!(out, "    HostKeyAlias hospes-{name}");
    let _ = writeln!(out, "    CheckHostIP no");
    if let Some(user) = user.or(vm.spec.user.as_deref()).filter(|user| is_user(user)) {
        let _ = writeln!(out, "    User {user}");
    }
    out.push('\n');
}

fn ssh_directory() -> Result<PathBuf, CommandError> {
    std::env::var_os("HOME")
        .filter(|home| Path::new(home).is_absolute())
        .map(|home| PathBuf::from(home).join(".ssh"))
        .ok_or_else(|| CommandError::local("HOME is not set"))
}

fn install(ssh: &Path, text: &str) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(ssh) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => (),
    }
    let told = "# Written by hospes ssh-config --install, and again at each run.\n\n";
    replace(&ssh.join(FILE), &format!("{told}{text}"))?;
    let config = ssh.join("config");
    let old = read(&config)?;
    if !is_included(&old) {
        let gap = if old.is_empty() { "" } else { "\n" };
        replace(&config, &format!("{INCLUDE}\n{gap}{old}"))?;
    }
    Ok(())
}

fn uninstall(ssh: &Path) -> io::Result<()> {
    let config = ssh.join("config");
    let old = read(&config)?;
    if is_included(&old) {
        let (_, rest) = old.split_once('\n').unwrap_or((&old, ""));
        replace(&config, rest.strip_prefix('\n').unwrap_or(rest))?;
    }
    match fs::remove_file(ssh.join(FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn is_included(config: &str) -> bool {
    config.lines().next().is_some_and(|line| line.trim() == INCLUDE)
}

fn read(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        result => result,
    }
}

/// Replaces a file whole, with the mode it had. Where it is a link (to somebody's collection of such files), what it
/// points to is replaced.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let path = match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
        found => found?,
    };
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut new = tempfile::Builder::new()
        .prefix(".hospes-")
        .make_in(directory, |path| File::options().write(true).create_new(true).mode(0o600).open(path))?;
    if let Ok(old) = path.metadata() {
        fs::set_permissions(new.path(), fs::Permissions::from_mode(old.permissions().mode() & 0o7777))?;
    }
    new.write_all(text.as_bytes())?;
    new.as_file().sync_all()?;
    new.persist(&path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::VmSpec;

    fn vm(user: Option<&str>) -> Vm {
        let (endpoint, user) = ("vsock:7".parse().unwrap(), user.map(str::to_owned));
        let spec = VmSpec { endpoint, user, hv: None, qmp: None, clipboard: false };
        Vm { name: "dev".parse().unwrap(), spec }
    }

    #[test]
    fn a_block_is_what_ssh_reads() {
        let mut text = String::new();
        block(&vm(Some("ada")), None, 22, "/usr/bin/hospes", &mut text);
        assert_eq!(
            text,
            "Host dev\n    ProxyCommand /usr/bin/hospes connect dev tcp:22\n    HostKeyAlias hospes-dev\n    \
             CheckHostIP no\n    User ada\n\n"
        );
        let mut text = String::new();
        block(&vm(Some("ada\n    ProxyCommand evil")), None, 22, "hospes", &mut text);
        assert!(!text.contains("evil"), "{text}");
        assert_eq!(shell_word("/a b/it's"), r"'/a b/it'\''s'");
    }

    #[test]
    fn install_comes_first_keeps_the_rest_and_can_be_undone() {
        let home = tempfile::tempdir().unwrap();
        let ssh = home.path().join(".ssh");
        install(&ssh, "Host a\n").unwrap();
        assert_eq!(ssh.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_to_string(ssh.join("config")).unwrap(), "Include hospes_config\n");
        uninstall(&ssh).unwrap();
        let own = "Host *\n    ForwardAgent no\n";
        fs::remove_file(ssh.join("config")).unwrap();
        fs::write(home.path().join("dotfile"), own).unwrap();
        fs::set_permissions(home.path().join("dotfile"), fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("../dotfile", ssh.join("config")).unwrap();
        for _ in 0..2 {
            install(&ssh, "Host b\n").unwrap();
            assert_eq!(
                fs::read_to_string(ssh.join("config")).unwrap(),
                format!("Include hospes_config\n\n{own}")
            );
        }
        assert!(ssh.join("config").is_symlink());
        assert_eq!(home.path().join("dotfile").metadata().unwrap().permissions().mode() & 0o777, 0o640);
        assert!(fs::read_to_string(ssh.join(FILE)).unwrap().ends_with("Host b\n"));
        uninstall(&ssh).unwrap();
        assert_eq!(fs::read_to_string(ssh.join("config")).unwrap(), own);
        assert!(!ssh.join(FILE).exists());
    }
}
