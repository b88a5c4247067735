//! What an entry could not be: errors in the words of the file system, and the list of them.

use hospes_protocol::copy::Done;
use hospes_protocol::error::{ErrorKind, WireError};
use hospes_protocol::limits::{COPY_PROBLEMS, PATH};
use rustix::io::Errno;

/// What happened to one entry.
pub type Problem = hospes_protocol::copy::Problem;

/// The problems of a copy: the first ones named, all counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems {
    named: Vec<Problem>,
    pub(crate) count: u64,
}

impl Problems {
    /// One more.
    pub fn add(&mut self, path: &[u8], error: WireError) {
        self.count += 1;
        if self.named.len() < COPY_PROBLEMS {
            // The end of a path says more than its beginning.
            let path = path[path.len().saturating_sub(PATH)..].to_vec();
            self.named.push(Problem { path, error });
        }
    }

    /// Those that are named.
    #[must_use]
    pub fn named(&self) -> &[Problem] {
        &self.named
    }

    /// How many there are.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }
}

/// What a copy did and what it could not do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Counts.
    pub done: Done,
    /// Problems; their count is in `done` too.
    pub problems: Problems,
}

/// An error of the operating system, as it crosses the wire: the act, then the system's words.
pub(crate) fn system(act: &str, errno: Errno) -> WireError {
    let words = std::io::Error::from(errno);
    WireError::new(kind(errno), format_args!("{act}: {}", plain(&words)))
}

/// The system's words without the number behind them.
fn plain(error: &std::io::Error) -> String {
    let words = error.to_string();
    match words.find(" (os error") {
        Some(at) => words[..at].to_owned(),
        None => words,
    }
}

pub(crate) const fn kind(errno: Errno) -> ErrorKind {
    match errno {
        Errno::NOENT => ErrorKind::NOT_FOUND,
        Errno::ACCESS | Errno::PERM => ErrorKind::PERMISSION,
        Errno::EXIST | Errno::NOTEMPTY => ErrorKind::EXISTS,
        Errno::ISDIR | Errno::NOTDIR => ErrorKind::FILE_KIND,
        Errno::LOOP => ErrorKind::ESCAPES,
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG => ErrorKind::NO_SPACE,
        Errno::ROFS => ErrorKind::READ_ONLY,
        _ => ErrorKind::OS,
    }
}
