//! How files look: long lines for people, JSON for programs.

use hospes_protocol::file::{Entry, Stat};
use hospes_protocol::hex;
use serde::Serialize;

use crate::printable;

/// A name from the guest.
pub(super) struct Name<'n>(pub(super) &'n [u8]);

impl Name<'_> {
    /// As a terminal may have it, or as it is.
    pub(super) fn to(&self, terminal: bool) -> Vec<u8> {
        if terminal { printable::bytes(self.0).into_bytes() } else { self.0.to_vec() }
    }
}

#[derive(Serialize)]
pub(super) struct Told<'e> {
    pub(super) entries: Vec<ToldEntry<'e>>,
}

#[derive(Serialize)]
pub(super) struct ToldEntry<'e> {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name_hex: Option<String>,
    r#type: &'static str,
    mode: String,
    size: u64,
    modified: i64,
    modified_ns: u32,
    uid: u32,
    gid: u32,
    user: &'e str,
    group: &'e str,
    links: u64,
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_hex: Option<String>,
}

impl<'e> From<&'e Entry> for ToldEntry<'e> {
    fn from(Entry { name, stat }: &'e Entry) -> Self {
        Self {
            name: lossy(name),
            name_hex: hex_unless_text(name),
            r#type: kind(stat.mode),
            mode: format!("{:04o}", stat.mode & 0o7777),
            size: stat.size,
            modified: stat.mtime_s,
            modified_ns: stat.mtime_ns,
            uid: stat.uid,
            gid: stat.gid,
            user: &stat.user,
            group: &stat.group,
            links: stat.links,
            target: (!stat.target.is_empty()).then(|| lossy(&stat.target)),
            target_hex: hex_unless_text(&stat.target),
        }
    }
}

#[derive(Serialize)]
pub(super) struct ToldPath {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
}

impl From<&[u8]> for ToldPath {
    fn from(path: &[u8]) -> Self {
        Self { path: lossy(path), path_hex: hex_unless_text(path) }
    }
}

#[derive(Serialize)]
pub(super) struct ToldBytes {
    pub(super) bytes: u64,
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn hex_unless_text(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).is_err().then(|| hex::encode(bytes))
}

/// Bytes of an entry's names.
pub(super) const fn text_len(entry: &Entry) -> usize {
    let Stat { user, group, target, .. } = &entry.stat;
    entry.name.len() + user.len() + group.len() + target.len()
}

/// A file's type in a word. The numbers are Linux's, which the guest is: ours may have others.
pub(super) const fn kind(mode: u32) -> &'static str {
    match mode & 0o170_000 {
        0o100_000 => "file",
        0o040_000 => "directory",
        0o120_000 => "symlink",
        0o010_000 => "fifo",
        0o140_000 => "socket",
        0o020_000 => "char",
        0o060_000 => "block",
        _ => "unknown",
    }
}

/// One line for each entry, as `ls -l` has them, with times in UTC.
pub(super) fn long(entries: &[Entry], terminal: bool) -> Vec<Vec<u8>> {
    let columns: Vec<[String; 5]> = entries.iter().map(|entry| columns(&entry.stat)).collect();
    let width = |at: usize| columns.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let [links, user, group, size] = [1, 2, 3, 4].map(width);
    let lines = entries.iter().zip(&columns).map(|(entry, row)| {
        let mut line = format!(
            "{} {:>links$} {:user$} {:group$} {:>size$} {} ",
            row[0],
            row[1],
            row[2],
            row[3],
            row[4],
            time(entry.stat.mtime_s),
        )
        .into_bytes();
        line.extend(Name(&entry.name).to(terminal));
        if !entry.stat.target.is_empty() {
            line.extend(b" -> ");
            line.extend(Name(&entry.stat.target).to(terminal));
        }
        line
    });
    lines.collect()
}

fn columns(stat: &Stat) -> [String; 5] {
    // The guest's user database is the guest's word.
    let name =
        |name: &str, id: u32| if name.is_empty() { id.to_string() } else { printable::line(name).into() };
    [
        permissions(stat.mode),
        stat.links.to_string(),
        name(&stat.user, stat.uid),
        name(&stat.group, stat.gid),
        stat.size.to_string(),
    ]
}

fn permissions(mode: u32) -> String {
    let kind = match kind(mode) {
        "file" => '-',
        "directory" => 'd',
        "symlink" => 'l',
        "fifo" => 'p',
        "socket" => 's',
        "char" => 'c',
        "block" => 'b',
        _ => '?',
    };
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// Seconds since 1970 as `2026-11-22T18:00:00Z`. The calendar repeats itself every 400 years, 146097 days.
fn time(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Years from 1 March, so that the leap day is the last: 719468 days from 0000-03-01 to 1970-01-01.
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year + era * 400 + carry;
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_the_calendars() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(time(seconds), text);
        }
    }

    #[test]
    fn long_lines_look_like_ls_and_hold_no_escape_on_a_terminal() {
        let stat = Stat { mode: 0o104_754, size: 12, links: 1, user: "dev".into(), ..Stat::default() };
        let entry = Entry { name: b"a\x1b[2J".to_vec(), stat };
        let link = Stat { mode: 0o120_777, target: b"x\xff".to_vec(), ..Stat::default() };
        let entries = [entry, Entry { name: b"l".to_vec(), stat: link }];
        let lines = long(&entries, true);
        let line = |at: usize| String::from_utf8(lines[at].clone()).unwrap();
        assert_eq!(line(0), "-rwsr-xr-- 1 dev 0 12 1970-01-01T00:00:00Z a\\u{1b}[2J");
        assert_eq!(line(1), "lrwxrwxrwx 0 0   0  0 1970-01-01T00:00:00Z l -> x\u{fffd}");
        assert!(long(&entries, false)[0].ends_with(b"a\x1b[2J"), "a pipe gets the name itself");
    }

    #[test]
    fn names_that_are_no_text_have_their_bytes_in_json() {
        let entry = Entry { name: b"\xff".to_vec(), stat: Stat::default() };
        let told = crate::ui::to_json(&ToldEntry::from(&entry));
        assert!(told.contains("\"name_hex\":\"ff\"") && told.contains("\"target\":null"), "{told}");
    }
}
