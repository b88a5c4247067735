//! The owner's scripts: which files of a folder are run, and which are not.
//!
//! A script is root's own or it is not run: what others could have written would run as root. Names are those that
//! run-parts(8) takes, so that what editors and package managers leave beside a file is none.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use hospes_protocol::power::{ScriptEnd, ScriptReport};
use nix::unistd::geteuid;

/// Scripts in one folder that are looked at.
const SCRIPTS: usize = 64;

/// A script that may be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// Its file name.
    pub name: String,
    /// The file.
    pub path: PathBuf,
}

/// The scripts of a folder by name, and a report for each file that is none but looks like one.
#[must_use]
pub fn find(folder: &Path) -> Vec<Result<Script, ScriptReport>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => return vec![Err(skipped("*".into(), &error.to_string()))],
    };
    let mut names: Vec<_> = entries
        .flatten()
        .map(|entry| entry.file_name())
        .filter(|name| looks_like_one(name.as_bytes()))
        .collect();
    names.sort();
    if names.is_empty() {
        return Vec::new();
    }
    if let Err(why) =
        fs::metadata(folder).map_err(|error| error.to_string()).and_then(|folder| trusted(&folder))
    {
        return vec![Err(skipped("*".into(), &format!("The folder is not root's alone: {why}")))];
    }
    names.truncate(SCRIPTS);
    names
        .into_iter()
        .map(|name| {
            let path = folder.join(&name);
            let name = name.to_string_lossy().into_owned();
            match check(&path) {
                Ok(()) => Ok(Script { name, path }),
                Err(why) => Err(skipped(name, &why)),
            }
        })
        .collect()
}

/// A name of letters, digits, dots, dashes and underscores that no package manager and no editor left behind.
fn looks_like_one(name: &[u8]) -> bool {
    const LEFT: [&[u8]; 8] =
        [b".bak", b".orig", b".rej", b".swp", b".rpmsave", b".rpmnew", b".rpmorig", b".disabled"];
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    let debian = name.windows(5).any(|part| part == b".dpkg") || name.windows(4).any(|part| part == b".ucf");
    !name.starts_with(b".")
        && name.iter().all(plain)
        && name != b"README"
        && !debian
        && !LEFT.iter().any(|suffix| name.ends_with(suffix))
}

fn check(path: &Path) -> Result<(), String> {
    // What a link points to counts; that the link itself is root's follows from its folder.
    let file = fs::metadata(path).map_err(|error| error.to_string())?;
    if !file.is_file() {
        return Err("It is no file".into());
    }
    trusted(&file)?;
    if file.mode() & 0o111 == 0 {
        return Err("It is not executable".into());
    }
    Ok(())
}

fn trusted(file: &Metadata) -> Result<(), String> {
    // The daemon is root; in its tests it may be somebody else, whose own files then count.
    if file.uid() != 0 && file.uid() != geteuid().as_raw() {
        return Err(format!("It belongs to user {} and not to root", file.uid()));
    }
    if file.mode() & 0o002 != 0 {
        return Err("Everybody may write to it".into());
    }
    if file.mode() & 0o020 != 0 && file.gid() != 0 {
        return Err(format!("Group {} may write to it", file.gid()));
    }
    Ok(())
}

fn skipped(name: String, why: &str) -> ScriptReport {
    ScriptReport { name, end: ScriptEnd::SKIPPED, status: 0, output: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn file(folder: &Path, name: &str, mode: u32) {
        fs::write(folder.join(name), "#!/bin/sh\n").unwrap();
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn names(folder: &Path) -> Vec<String> {
        find(folder).into_iter().flatten().map(|script| script.name).collect()
    }

    #[test]
    fn scripts_come_by_name_and_left_overs_are_none() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["20-b", "10-a.sh", "x.dpkg-old", "y~", ".hidden", "z.rpmsave", "README", "a b"] {
            file(folder.path(), name, 0o755);
        }
        assert_eq!(names(folder.path()), ["10-a.sh", "20-b"]);
        assert!(find(&folder.path().join("none")).is_empty());
    }

    #[test]
    fn what_others_may_write_is_not_run_and_that_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        file(folder.path(), "1-everybody", 0o757);
        file(folder.path(), "2-plain", 0o644);
        file(folder.path(), "3-good", 0o700);
        fs::create_dir(folder.path().join("4-folder")).unwrap();
        symlink("/nonexistent", folder.path().join("5-gone")).unwrap();
        let found = find(folder.path());
        assert_eq!(names(folder.path()), ["3-good"]);
        let why = |at: usize| String::from_utf8(found[at].as_ref().unwrap_err().output.clone()).unwrap();
        assert_eq!(why(0), "Everybody may write to it");
        assert_eq!(why(1), "It is not executable");
        assert_eq!(why(3), "It is no file");
        assert!(why(4).contains("No such file"));
        assert!(found.iter().flat_map(|found| found.as_ref().err()).all(|report| !report.objects()));
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(find(folder.path()).len(), 1, "a folder that everybody may write to has no scripts");
        assert_eq!(names(folder.path()), Vec::<String>::new());
    }
}
