//! Writes the golden vectors of the release being made: `cargo run -p hospes-protocol --example vectors -- --write`.
//!
//! `--seal` writes the folder's digests with it, which is part of making the release. A sealed folder is never written
//! again: change the version first.

#[path = "../tests/wire/mod.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod wire;

use anyhow::{Context, Result, bail};
use wire::folder;

fn main() -> Result<()> {
    let seal = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [word] if word == "--write" => false,
        [word] if word == "--seal" => true,
        _ => bail!("Say --write, or --seal when the release is made"),
    };
    let path = folder::current();
    if path.join(folder::SEAL).exists() {
        bail!(
            "{} is released and stays as it is: set the next version in Cargo.toml first. A changed message is a new \
             FrameId",
            path.display()
        );
    }
    let files = folder::generate()?;
    if path.exists() {
        std::fs::remove_dir_all(&path).with_context(|| format!("Cannot clear {}", path.display()))?;
    }
    for (name, bytes) in &files {
        let file = path.join(name);
        let parent = file.parent().context("a vector is in a folder")?;
        std::fs::create_dir_all(parent)?;
        std::fs::write(&file, bytes).with_context(|| format!("Cannot write {}", file.display()))?;
    }
    if seal {
        std::fs::write(path.join(folder::SEAL), folder::seal(&files))?;
    }
    println!("{} files in {}", files.len(), path.display());
    Ok(())
}
