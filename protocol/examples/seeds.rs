//! Writes the fuzz targets' first inputs: `cargo run -p hospes-protocol --example seeds -- FOLDER`, a folder in it for
//! each target.

#[path = "../tests/seeds/mod.rs"]
mod seeds;

use anyhow::{Context, Result};
use std::path::PathBuf;

fn main() -> Result<()> {
    let root = PathBuf::from(std::env::args_os().nth(1).context("Say which folder to write to")?);
    for (number, (target, bytes)) in seeds::all().into_iter().enumerate() {
        let folder = root.join(target);
        std::fs::create_dir_all(&folder).with_context(|| format!("Cannot make {}", folder.display()))?;
        std::fs::write(folder.join(format!("golden-{number:04}")), bytes)?;
    }
    Ok(())
}
