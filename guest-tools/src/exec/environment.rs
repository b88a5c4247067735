//! The environment that commands start from: the worker's own, which PAM made, without what is the service manager's.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// Who the commands belong to, as the user database has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// User id.
    pub uid: u32,
    /// Name.
    pub name: String,
    /// Home directory.
    pub home: PathBuf,
    /// Login shell.
    pub shell: PathBuf,
}

impl From<nix::unistd::User> for Account {
    fn from(user: nix::unistd::User) -> Self {
        let shell = if user.shell.as_os_str().is_empty() { "/bin/sh".into() } else { user.shell };
        Self { uid: user.uid.as_raw(), name: user.name, home: user.dir, shell }
    }
}

/// Names and values, by name.
pub(crate) type Variables = BTreeMap<Vec<u8>, Vec<u8>>;

/// systemd's word to a service about itself (`systemd.exec(5)`), and what a shell says of itself.
const REMOVED: &[&str] = &[
    "CACHE_DIRECTORY",
    "CONFIGURATION_DIRECTORY",
    "CREDENTIALS_DIRECTORY",
    "FDSTORE",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "LOGS_DIRECTORY",
    "MAINPID",
    "MANAGERPID",
    "MANAGERPIDFDID",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
    "NOTIFY_SOCKET",
    "OLDPWD",
    "PWD",
    "RUNTIME_DIRECTORY",
    "SHLVL",
    "STATE_DIRECTORY",
    "SYSTEMD_EXEC_PID",
    "TERM",
    "TRIGGER_PATH",
    "TRIGGER_TIMER_MONOTONIC_USEC",
    "TRIGGER_TIMER_REALTIME_USEC",
    "TRIGGER_UNIT",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "_",
];
const REMOVED_PREFIXES: &[&str] = &["LISTEN_", "MONITOR_", "REMOTE_", "SERVICE_RESULT", "EXIT_"];

/// What systemd gives every service that says nothing: no user's choice.
const SERVICE_PATHS: &[&str] = &[
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "/usr/local/bin:/usr/bin",
];
/// As `login.defs(5)` has it in Debian.
const USER_PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games";
const ROOT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The environment that every command of this account starts from, made from the worker's own.
#[must_use]
pub(crate) fn base(account: &Account, own: impl IntoIterator<Item = (OsString, OsString)>) -> Variables {
    let mut variables: Variables =
        own.into_iter().map(|(name, value)| (name.into_vec(), value.into_vec())).filter(is_users).collect();
    let mut set = |name: &str, value: &OsStr| variables.insert(name.into(), value.as_bytes().to_vec());
    set("HOME", account.home.as_os_str());
    set("USER", account.name.as_ref());
    set("LOGNAME", account.name.as_ref());
    set("SHELL", account.shell.as_os_str());
    let default = if account.uid == 0 { ROOT_PATH } else { USER_PATH };
    let path = variables.entry(b"PATH".to_vec()).or_default();
    if path.is_empty() || SERVICE_PATHS.iter().any(|known| known.as_bytes() == path.as_slice()) {
        *path = default.into();
    }
    variables
}

fn is_users((name, _): &(Vec<u8>, Vec<u8>)) -> bool {
    let is = |known: &&str| known.as_bytes() == name.as_slice();
    !name.is_empty()
        && !REMOVED.iter().any(is)
        && !REMOVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix.as_bytes()))
}

/// The user's message bus, which may come up after the worker: `DBUS_SESSION_BUS_ADDRESS` for the runtime directory's
/// socket, where nothing says otherwise.
pub(crate) fn add_bus(variables: &mut Variables) {
    const NAME: &[u8] = b"DBUS_SESSION_BUS_ADDRESS";
    let Some(runtime) = variables.get(b"XDG_RUNTIME_DIR".as_slice()) else { return };
    if variables.contains_key(NAME) {
        return;
    }
    let socket = PathBuf::from(OsStr::from_bytes(runtime)).join("bus");
    if socket.exists() {
        let address = [b"unix:path=", socket.as_os_str().as_bytes()].concat();
        variables.insert(NAME.into(), address);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(uid: u32) -> Account {
        Account { uid, name: "ada".into(), home: "/home/ada".into(), shell: "/bin/zsh".into() }
    }

    fn text(variables: &Variables, name: &str) -> Option<String> {
        variables.get(name.as_bytes()).map(|value| String::from_utf8(value.clone()).unwrap())
    }

    #[test]
    fn the_service_managers_variables_do_not_reach_commands() {
        let own = [
            ("NOTIFY_SOCKET", "/run/x"),
            ("LISTEN_FDS", "1"),
            ("LISTEN_FDNAMES", "x"),
            ("INVOCATION_ID", "0"),
            ("LANG", "de_DE.UTF-8"),
            ("XDG_RUNTIME_DIR", "/run/user/7"),
            ("HOME", "/root"),
        ];
        let made = base(&account(7), own.map(|(name, value)| (name.into(), value.into())));
        let names: Vec<_> = made.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        assert_eq!(names, ["HOME", "LANG", "LOGNAME", "PATH", "SHELL", "USER", "XDG_RUNTIME_DIR"]);
        assert_eq!(text(&made, "HOME").unwrap(), "/home/ada");
    }

    #[test]
    fn a_path_from_pam_stays_and_a_services_default_does_not() {
        let path =
            |uid, value: &str| text(&base(&account(uid), [("PATH".into(), value.into())]), "PATH").unwrap();
        assert_eq!(path(7, "/opt/bin:/usr/bin"), "/opt/bin:/usr/bin");
        assert_eq!(path(7, SERVICE_PATHS[0]), USER_PATH);
        assert!(path(0, "").contains("/usr/sbin"));
    }
}
