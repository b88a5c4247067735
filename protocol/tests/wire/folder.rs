//! A release's folder of vectors: written while the release is being made, sealed with it, and never changed again.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::{conversation, hostile, replay, samples, scripts};

/// The digests of a released folder's files, as sha256sum(1) writes them.
pub(crate) const SEAL: &str = "SHA256SUMS";

/// Files by their path below the release's folder.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// All releases' folders are below this one.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

/// The folder of the release being made.
pub(crate) fn current() -> PathBuf {
    root().join(concat!("v", env!("CARGO_PKG_VERSION")))
}

/// Every release's folder.
pub(crate) fn releases() -> Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(root()).context("Cannot list the releases' vectors")? {
        let path = entry?.path();
        if path.is_dir() {
            folders.push(path);
        }
    }
    folders.sort();
    Ok(folders)
}

/// The files as today's code makes them.
pub(crate) fn generate() -> Result<Files> {
    let mut files = Files::new();
    for (name, bytes) in samples::all().0 {
        add(&mut files, format!("valid/{name}.bin"), bytes)?;
    }
    for (name, bytes) in hostile::all() {
        add(&mut files, format!("hostile/{name}.bin"), bytes)?;
    }
    for (name, script) in scripts::all() {
        let records = replay::record(script).with_context(|| format!("Conversation {name}"))?;
        add(&mut files, format!("conversations/{name}.conv"), conversation::to_bytes(&records))?;
    }
    Ok(files)
}

fn add(files: &mut Files, name: String, bytes: Vec<u8>) -> Result<()> {
    if files.contains_key(&name) {
        bail!("Two vectors are named {name}");
    }
    files.insert(name, bytes);
    Ok(())
}

/// The files as they stand in a folder, without its seal.
pub(crate) fn read(folder: &Path) -> Result<Files> {
    let mut files = Files::new();
    read_into(folder, "", &mut files)?;
    files.remove(SEAL);
    Ok(files)
}

fn read_into(folder: &Path, prefix: &str, files: &mut Files) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("Cannot list {}", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name().into_string().ok().context("A vector's name is not UTF-8")?;
        if entry.file_type()?.is_dir() {
            read_into(&entry.path(), &format!("{prefix}{name}/"), files)?;
        } else {
            files.insert(format!("{prefix}{name}"), std::fs::read(entry.path())?);
        }
    }
    Ok(())
}

/// The seal of these files.
pub(crate) fn seal(files: &Files) -> String {
    let mut lines = String::new();
    for (name, bytes) in files {
        let digest = Sha256::digest(bytes).iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        let _ = writeln!(lines, "{digest}  {name}");
    }
    lines
}
