//! How each user's desktop helper reaches the screens, as it notes it for us.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc::{O_NOFOLLOW, O_NONBLOCK};

use super::{Finding, Verdict, good};

/// The note's name in a user's runtime directory.
const NOTE: &str = "hospes-screens";
/// Where the runtime directories are.
const USERS: &str = "/run/user";
/// Bytes of a note that are read.
const MOST: u64 = 2048;

/// A finding for each user whose helper has left a note that we may read.
pub(super) fn look() -> Vec<Finding> {
    look_in(Path::new(USERS))
}

fn look_in(users: &Path) -> Vec<Finding> {
    let entries = fs::read_dir(users).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let note = read(&entry.path().join(NOTE))?;
            Some((entry.file_name().to_string_lossy().into_owned(), note))
        })
        .collect();
    found.sort();
    found.iter().map(|(user, note)| finding(user, note)).collect()
}

/// A user's file, which may be anything.
fn read(path: &Path) -> Option<String> {
    let file = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path).ok()?;
    file.metadata().ok()?.is_file().then_some(())?;
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The first line is the way's name, empty where there is none; the second says why.
fn finding(user: &str, note: &str) -> Finding {
    let (back_end, why) = note.split_once('\n').unwrap_or((note, ""));
    let why = why.trim();
    if back_end.is_empty() {
        return Finding {
            verdict: Verdict::Note,
            what: format!("The screens of user {user} cannot be set: {why}"),
            remedy: String::new(),
        };
    }
    good(format!("The screens of user {user} are set by {back_end}. {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_read_and_what_is_none_is_passed_over() {
        let users = tempfile::tempdir().unwrap();
        let put = |user: &str, note: &str| {
            fs::create_dir(users.path().join(user)).unwrap();
            fs::write(users.path().join(user).join(NOTE), note).unwrap();
        };
        put("1000", "sway\nThe compositor is sway\n");
        put("1001", "\nNo socket was found\n");
        fs::create_dir_all(users.path().join("1002").join(NOTE)).unwrap();
        fs::create_dir(users.path().join("1003")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", users.path().join("1003").join(NOTE)).unwrap();
        let found = look_in(users.path());
        let words: Vec<_> = found.iter().map(|finding| (finding.verdict, finding.what.as_str())).collect();
        assert_eq!(
            words,
            [
                (Verdict::Good, "The screens of user 1000 are set by sway. The compositor is sway"),
                (Verdict::Note, "The screens of user 1001 cannot be set: No socket was found"),
            ]
        );
    }
}
