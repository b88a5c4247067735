//! Names to leave out, by rsync's rules: a pattern with a slash in front is anchored at the copy's top, one with a slash
//! inside matches the end of a path, one without matches a name at any depth; a slash at the end is for directories
//! only. `*` and `?` stop at a slash, `**` does not; `[…]` and `{a,b}` work too.

/// A set of patterns.
#[derive(Debug, Clone, Default)]
pub struct Exclude {
    patterns: Vec<Pattern>,
}

#[derive(Debug, Clone)]
struct Pattern {
    glob: Vec<u8>,
    place: Place,
    directories_only: bool,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    /// The whole path from the top.
    Anchored,
    /// The path's last components.
    Tail,
    /// The last component.
    Name,
}

/// A pattern that would match everything or nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("The exclude pattern {pattern:?} names nothing")]
pub struct PatternError {
    pattern: String,
}

impl Exclude {
    /// The patterns, in any order: an entry that one of them matches is left out, and all below it.
    ///
    /// # Errors
    /// [`PatternError`] for one that is empty or only slashes.
    pub fn new<P: AsRef<[u8]>>(patterns: impl IntoIterator<Item = P>) -> Result<Self, PatternError> {
        let patterns = patterns.into_iter().map(|pattern| Pattern::new(pattern.as_ref()));
        Ok(Self { patterns: patterns.collect::<Result<_, _>>()? })
    }

    /// Whether an entry is left out. `path` is relative to the copy's top and has no slash at either end.
    #[must_use]
    pub fn matches(&self, path: &[u8], directory: bool) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(path, directory))
    }
}

impl Pattern {
    fn new(pattern: &[u8]) -> Result<Self, PatternError> {
        let (body, directories_only) = match pattern.strip_suffix(b"/") {
            Some(body) => (body, true),
            None => (pattern, false),
        };
        let (glob, place) = match body.strip_prefix(b"/") {
            Some(glob) => (glob.to_vec(), Place::Anchored),
            None if body.contains(&b'/') => ([b"**/", body].concat(), Place::Tail),
            None if body == b"**" => (body.to_vec(), Place::Anchored),
            None => (body.to_vec(), Place::Name),
        };
        if glob.is_empty() || glob.ends_with(b"/") {
            return Err(PatternError { pattern: pattern.escape_ascii().to_string() });
        }
        Ok(Self { glob, place, directories_only })
    }

    fn matches(&self, path: &[u8], directory: bool) -> bool {
        if self.directories_only && !directory {
            return false;
        }
        let subject = match self.place {
            Place::Anchored | Place::Tail => path,
            Place::Name => path.rsplit(|byte| *byte == b'/').next().unwrap_or(path),
        };
        fast_glob::glob_match(&self.glob, subject)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn left_out(pattern: &str, path: &str) -> bool {
        Exclude::new([pattern]).unwrap().matches(path.as_bytes(), path.ends_with('d'))
    }

    #[test]
    fn patterns_follow_rsync() {
        for (pattern, path, expected) in [
            ("*.o", "a.o", true),
            ("*.o", "x/y/a.o", true),
            ("*.o", "a.oo", false),
            ("/a", "a", true),
            ("/a", "x/a", false),
            ("/x/*", "x/a", true),
            ("/x/*", "x/a/b", false),
            ("/x/**", "x/a/b", true),
            ("x/a", "w/x/a", true),
            ("x/a", "x/a", true),
            ("x/a", "x/b/a", false),
            ("target/", "target", false),
            ("d/", "x/d", true),
            ("d/", "x/c", false),
            ("[ab]?", "x/ac", true),
            ("{cat,dog}", "dog", true),
            ("**", "x/y", true),
            ("*", ".hidden", true),
        ] {
            assert_eq!(left_out(pattern, path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn a_pattern_that_names_nothing_is_refused() {
        for pattern in ["", "/", "//"] {
            assert!(Exclude::new([pattern]).is_err(), "{pattern:?}");
        }
    }

    proptest! {
        #[test]
        fn no_pattern_panics(pattern in proptest::collection::vec(any::<u8>(), 0..40), path in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(exclude) = Exclude::new([&pattern]) {
                let _ = exclude.matches(&path, true);
            }
        }
    }
}
