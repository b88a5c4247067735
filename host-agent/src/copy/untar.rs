//! A tar archive as the source of a copy: what `hospes cp - VM:dir` reads from its stdin.
//!
//! An archive names paths in any order, so directories are entered and left as they come; one that comes again gets its
//! attributes again. A path that leaves the archive's top is that entry's problem.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::Arc;

use hospes_protocol::copy::Done;
use hospes_protocol::copy::archive::{Attributes, Fault, MODE_BITS, Record, put_xattr};
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::limits::{COPY_DEPTH, COPY_LINKS, COPY_NAME, COPY_XATTRS, PATH};
use hospes_tree::frames::{Frames, Stopped};
use hospes_tree::progress::Progress;
use hospes_tree::read::Produce;
use hospes_tree::{Exclude, Problems, Summary};
use tar::{Archive, Entry, EntryType};

/// Reads a tar archive into records.
pub struct TarReader<R> {
    input: R,
    exclude: Exclude,
    progress: Arc<Progress>,
}

impl<R: Read + Send> TarReader<R> {
    /// Reads `input` but for what is excluded.
    pub const fn new(input: R, exclude: Exclude, progress: Arc<Progress>) -> Self {
        Self { input, exclude, progress }
    }
}

impl<R: Read + Send> Produce for TarReader<R> {
    fn run(self: Box<Self>, frames: &mut Frames) -> Result<Summary, Stopped> {
        let mut walk = Walk {
            exclude: self.exclude,
            progress: self.progress,
            at: Vec::new(),
            directories: HashMap::new(),
            links: HashMap::new(),
            done: Done::default(),
            problems: Problems::default(),
        };
        frames.record(&Record::Here(None))?;
        walk.archive(self.input, frames)?;
        walk.go_to(&[], frames)?;
        frames.record(&Record::Leave)?;
        frames.flush()?;
        walk.done.problems = walk.problems.count();
        Ok(Summary { done: walk.done, problems: walk.problems })
    }
}

/// An entry's attributes, owned.
#[derive(Debug, Clone, Default)]
struct Kept {
    mode: u32,
    seconds: i64,
    nanoseconds: u32,
    xattrs: Vec<u8>,
}

impl Kept {
    fn attributes(&self) -> Attributes<'_> {
        Attributes {
            mode: self.mode,
            seconds: self.seconds,
            nanoseconds: self.nanoseconds,
            xattrs: &self.xattrs,
        }
    }
}

struct Walk {
    exclude: Exclude,
    progress: Arc<Progress>,
    /// The directories entered, from the top.
    at: Vec<Vec<u8>>,
    directories: HashMap<Vec<Vec<u8>>, Kept>,
    /// Files by path: any of them may be named by a link later.
    links: HashMap<Vec<Vec<u8>>, u64>,
    done: Done,
    problems: Problems,
}

impl Walk {
    fn archive(&mut self, input: impl Read, frames: &mut Frames) -> Result<(), Stopped> {
        let mut archive = Archive::new(input);
        let entries = match archive.entries() {
            Ok(entries) => entries,
            Err(error) => return self.problem(b"-", &broken(&error), frames),
        };
        for entry in entries {
            match entry {
                Ok(mut entry) => self.entry(&mut entry, frames)?,
                // Where one entry ends is said in its header: without it there is no next.
                Err(error) => return self.problem(b"-", &broken(&error), frames),
            }
        }
        Ok(())
    }

    fn entry(&mut self, entry: &mut Entry<'_, impl Read>, frames: &mut Frames) -> Result<(), Stopped> {
        let path = entry.path_bytes().into_owned();
        let kind = entry.header().entry_type();
        let Some(names) = components(&path) else {
            let error = WireError::new(ErrorKind::ESCAPES, "Its path leaves the archive, or is too long");
            return self.problem(&path, &error, frames);
        };
        let joined = names.join(&b'/');
        let excluded = (1..=names.len()).any(|depth| {
            let above = names[..depth].join(&b'/');
            self.exclude.matches(&above, depth < names.len() || kind.is_dir())
        });
        if excluded {
            return Ok(());
        }
        let kept = kept(entry);
        if kind.is_dir() {
            self.directories.insert(names.clone(), kept);
            if self.at == names {
                // It was only on the way before: entered again, it gets its attributes.
                self.go_to(&names[..names.len().saturating_sub(1)], frames)?;
            }
            return self.go_to(&names, frames);
        }
        let Some((name, above)) = names.split_last() else { return Ok(()) };
        self.go_to(above, frames)?;
        self.progress.entry();
        let attributes = kept.attributes();
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(entry, name, &attributes, &names, frames)
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default();
                if target.is_empty() || target.len() > PATH || target.contains(&0) {
                    let error =
                        WireError::new(ErrorKind::OTHER, "It is a symbolic link without a valid target");
                    return self.problem(&joined, &error, frames);
                }
                self.done.links += 1;
                frames.record(&Record::Symlink { name, attributes, target: &target })
            }
            EntryType::Link => {
                let first = entry.link_name_bytes().and_then(|first| components(&first));
                match first.and_then(|first| self.links.get(&first).copied()) {
                    Some(to) => {
                        self.done.links += 1;
                        frames.record(&Record::HardLink { name, to })
                    }
                    None => {
                        let error = WireError::new(
                            ErrorKind::NOT_FOUND,
                            "The file of which it is another name did not come",
                        );
                        self.problem(&joined, &error, frames)
                    }
                }
            }
            EntryType::Fifo => {
                self.done.links += 1;
                frames.record(&Record::Fifo { name, attributes })
            }
            _ => {
                let error = WireError::new(
                    ErrorKind::FILE_KIND,
                    "It is a device, or of another kind that is not copied",
                );
                self.problem(&joined, &error, frames)
            }
        }
    }

    fn file(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        name: &[u8],
        attributes: &Attributes<'_>,
        names: &[Vec<u8>],
        frames: &mut Frames,
    ) -> Result<(), Stopped> {
        let size = entry.size();
        let number = self.links.len() as u64;
        // A path that comes twice is two files: links mean the later one.
        let linked = number < COPY_LINKS && !self.links.contains_key(names);
        frames.record(&Record::File { name, attributes: *attributes, size, linked, sparse: false })?;
        if linked {
            self.links.insert(names.to_vec(), number);
        }
        let mut left = size;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX);
            let mut failure = None;
            let read = frames.data::<Stopped>(most.min(16 * 1024), most, |room| {
                let len = room.len() - 1;
                match entry.read(&mut room[..len]) {
                    Ok(n) => Ok(n),
                    Err(error) => {
                        failure = Some(broken(&error));
                        Ok(0)
                    }
                }
            })?;
            if read == 0 {
                let short =
                    WireError::new(ErrorKind::OS, format_args!("The archive ends {left} bytes before it"));
                let error = failure.unwrap_or(short);
                self.problems.add(&names.join(&b'/'), error.clone());
                return frames.record(&Record::Broken(Fault::from(&error)));
            }
            left -= read as u64;
            self.progress.add(read as u64);
        }
        self.done.files += 1;
        self.done.bytes += size;
        frames.record(&Record::End)
    }

    /// Leaves and enters directories until these are the ones at hand.
    fn go_to(&mut self, names: &[Vec<u8>], frames: &mut Frames) -> Result<(), Stopped> {
        let common = self.at.iter().zip(names).take_while(|(ours, theirs)| ours == theirs).count();
        while self.at.len() > common {
            self.at.pop();
            frames.record(&Record::Leave)?;
        }
        for name in &names[common..] {
            self.at.push(name.clone());
            let kept = self.directories.get(&self.at);
            frames.record(&Record::Enter { name, attributes: kept.map(Kept::attributes) })?;
            self.done.directories += 1;
        }
        Ok(())
    }

    fn problem(&mut self, path: &[u8], error: &WireError, frames: &mut Frames) -> Result<(), Stopped> {
        self.problems.add(path, error.clone());
        frames.record(&Record::Skipped { name: b"", fault: Fault::from(error) })
    }
}

fn broken(error: &io::Error) -> WireError {
    WireError::new(ErrorKind::OS, format_args!("The tar archive cannot be read further: {error}"))
}

/// A path's components below the top; none where it would leave it.
fn components(path: &[u8]) -> Option<Vec<Vec<u8>>> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
    let names: Vec<Vec<u8>> = names.map(<[u8]>::to_vec).collect();
    let fits = |name: &Vec<u8>| name != b".." && name.len() <= COPY_NAME && !name.contains(&0);
    (names.len() < COPY_DEPTH && names.iter().all(fits)).then_some(names)
}

fn kept(entry: &mut Entry<'_, impl Read>) -> Kept {
    let mut kept = Kept {
        mode: entry.header().mode().unwrap_or(0o644) & MODE_BITS,
        seconds: entry.header().mtime().map_or(0, |time| i64::try_from(time).unwrap_or(0)),
        ..Kept::default()
    };
    let Ok(Some(extensions)) = entry.pax_extensions() else { return kept };
    for extension in extensions.flatten() {
        let value = extension.value_bytes();
        match extension.key_bytes() {
            b"mtime" => {
                if let Some((seconds, nanoseconds)) = std::str::from_utf8(value).ok().and_then(time) {
                    kept.seconds = seconds;
                    kept.nanoseconds = nanoseconds;
                }
            }
            key => {
                let name = key.strip_prefix(b"SCHILY.xattr.").unwrap_or_default();
                let known = name.starts_with(b"user.") && name.len() <= COPY_NAME && !name.contains(&0);
                if known && kept.xattrs.len() + name.len() + value.len() + 20 <= COPY_XATTRS {
                    put_xattr(name, value, &mut kept.xattrs);
                }
            }
        }
    }
    kept
}

/// Decimal seconds as pax has them.
fn time(text: &str) -> Option<(i64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let whole: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    match (negative, nanoseconds) {
        (true, 1..) => Some((whole.checked_sub(1)?, 1_000_000_000 - nanoseconds)),
        _ => Some((whole, nanoseconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_decimals() {
        assert_eq!(time("5"), Some((5, 0)));
        assert_eq!(time("5.25"), Some((5, 250_000_000)));
        assert_eq!(time("-0.75"), Some((-1, 250_000_000)));
        assert_eq!(time("1.1234567899"), Some((1, 123_456_789)));
        assert_eq!(time("x"), None);
        assert_eq!(time("1.é"), None);
    }

    #[test]
    fn paths_stay_below_the_top() {
        assert_eq!(components(b"/a//./b/"), Some(vec![b"a".to_vec(), b"b".to_vec()]));
        assert_eq!(components(b"./"), Some(vec![]));
        assert_eq!(components(b"a/../../b"), None);
        assert_eq!(components(&[b'n'; COPY_NAME + 1]), None);
    }
}
