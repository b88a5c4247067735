//! Users with a session, from what systemd-logind keeps under /run. Reading its files wakes nobody; asking it over D-Bus
//! would wake it and, on demand, start it.

use std::fs;
use std::path::Path;

use hospes_protocol::info::User;

use super::system::assigned;
use crate::atomic_file;

/// Where logind keeps its sessions, one file for each.
pub(super) const SESSIONS: &str = "/run/systemd/sessions";
/// Sessions in one answer.
const USERS: usize = 256;
/// Bytes of a session's file.
const FILE: u64 = 64 * 1024;

pub(super) fn with_sessions() -> Vec<User> {
    in_directory(Path::new(SESSIONS))
}

/// As [`with_sessions`], each with the time at which it began, in seconds since 1970.
pub(super) fn logged_in() -> Vec<(User, f64)> {
    let began = |text: &str| {
        let microseconds = assigned(text, "REALTIME").and_then(|value| value.parse::<u64>().ok());
        #[expect(clippy::cast_precision_loss, reason = "microseconds of this age fit into a double")]
        microseconds.map_or(0.0, |microseconds| microseconds as f64 / 1e6)
    };
    texts(Path::new(SESSIONS))
        .filter_map(|text| session(&text).map(|user| (user, began(&text))))
        .take(USERS)
        .collect()
}

fn in_directory(directory: &Path) -> Vec<User> {
    let mut users: Vec<User> = texts(directory).filter_map(|text| session(&text)).take(USERS).collect();
    users.sort_by(|a, b| (a.uid, &a.place).cmp(&(b.uid, &b.place)));
    users.dedup();
    users
}

fn texts(directory: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        // Beside each session's file stands the pipe that keeps it alive.
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
        .filter_map(|entry| atomic_file::read_text(&entry.path(), FILE).ok().flatten())
}

fn session(text: &str) -> Option<User> {
    let value = |name| assigned(text, name).filter(|value| !value.is_empty());
    // Managers, greeters and lock screens are no users at work.
    if value("CLASS").is_some_and(|class| !class.starts_with("user"))
        || value("STATE").as_deref() == Some("closing")
    {
        return None;
    }
    let place = ["TTY", "DISPLAY", "SEAT", "TYPE"].into_iter().find_map(value).unwrap_or_default();
    Some(User { name: value("USER")?, uid: value("UID")?.parse().ok()?, place })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_of_people_are_listed_with_their_place() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write(
            "1",
            "# This is private data.\nUID=1000\nUSER=ada\nACTIVE=1\nTTY=tty1\nSEAT=seat0\nCLASS=user\n",
        );
        write("c2", "UID=1001\nUSER=eve\nTYPE=unspecified\nCLASS=user\nSTATE=active\n");
        write("c3", "UID=110\nUSER=gdm\nCLASS=greeter\n");
        write("4", "UID=1000\nUSER=ada\nCLASS=manager\n");
        write("5", "UID=1002\nUSER=old\nCLASS=user\nSTATE=closing\n");
        let users: Vec<_> =
            in_directory(directory.path()).into_iter().map(|user| (user.name, user.place)).collect();
        assert_eq!(users, [("ada".into(), "tty1".into()), ("eve".into(), String::from("unspecified"))]);
    }
}
