//! Where the lab's parts are, and what to run when one is missing.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The built guest: kernel, initramfs and disk.
#[derive(Clone, Debug)]
pub struct Lab {
    image: PathBuf,
}

impl Lab {
    /// The image that belongs to this checkout.
    pub fn find() -> Result<Self> {
        Self::built_by("image.sh", "make lab")
    }

    fn built_by(script: &str, remedy: &str) -> Result<Self> {
        let script = workspace().join("tests/lab").join(script);
        let output = Command::new("sh")
            .arg(&script)
            .arg("--path")
            .output()
            .with_context(|| format!("Could not run {}", script.display()))?;
        let image = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        if !output.status.success() || !image.join("root.ext4").exists() {
            bail!("The lab's guest is not built: {} is missing. Run `{remedy}`.", image.display());
        }
        Ok(Self { image })
    }

    /// The guest with a screen, where it is built.
    pub fn with_screen() -> Result<Self> {
        Self::built_by("display.sh", "make lab-display")
    }

    /// One of the image's files: `vmlinuz`, `initramfs`, `root.ext4`, `ssh_key`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.image.join(name)
    }

    /// A program of ours for this machine, as `make build` makes it.
    pub fn program(name: &str) -> Result<PathBuf> {
        existing(target_dir()?.join("lab").join(name), "make build")
    }

    /// The same as it is shipped, for measuring: `cargo build --release` makes it.
    pub fn released(name: &str) -> Result<PathBuf> {
        existing(target_dir()?.join("release").join(name), "make bench")
    }

    /// The guest's package as it is shipped, for measuring: `make package` makes it.
    pub fn released_package() -> Result<PathBuf> {
        existing(target_dir()?.join("packages").join(file_of("hospes-tools")), "make package")
    }

    /// The guest's package, as `make test-package` makes it.
    pub fn package() -> Result<PathBuf> {
        package("hospes-tools")
    }

    /// The package of the guest's desktop, as `make test-package` makes it.
    pub fn desktop_package() -> Result<PathBuf> {
        package("hospes-desktop")
    }

    /// The host's package for the guest's kind of machine, as `make test-package` makes it.
    pub fn host_package() -> Result<PathBuf> {
        package("hospes")
    }

    /// A program of ours for the guest, as `make guest` makes it.
    pub fn guest_program(name: &str) -> Result<PathBuf> {
        existing(target_dir()?.join("aarch64-unknown-linux-gnu/lab").join(name), "make guest")
    }
}

/// The checkout.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Cargo's target directory, which is where this very program runs from: `TARGET/PROFILE/deps/NAME` if it is a
/// test, `TARGET/PROFILE/NAME` if it is not.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let profile = program.parent().map(|directory| match directory.file_name() {
        Some(name) if name == "deps" => directory.parent().unwrap_or(directory),
        _ => directory,
    });
    let target = profile.and_then(Path::parent);
    Ok(target
        .with_context(|| format!("{} is not in a cargo target directory", program.display()))?
        .to_owned())
}

/// A directory for a guest's log and sockets, kept until a guest of the same name boots again, and the lock on it.
pub(crate) fn run_directory(name: &str) -> Result<(PathBuf, File)> {
    let lab = target_dir()?.join("lab-runs");
    fs::create_dir_all(&lab)?;
    for number in 1..100 {
        let name = if number == 1 { name.to_owned() } else { format!("{name}.{number}") };
        let lock = File::create(lab.join(format!("{name}.lock")))?;
        if lock.try_lock().is_err() {
            continue;
        }
        let directory = lab.join(name);
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir(&directory)?;
        return Ok((directory, lock));
    }
    bail!("A hundred guests called {name} run at once: see {}.", lab.display())
}

fn package(name: &str) -> Result<PathBuf> {
    existing(target_dir()?.join("lab/packages").join(file_of(name)), "make test-package")
}

fn file_of(name: &str) -> String {
    format!("{name}_{}_arm64.deb", env!("CARGO_PKG_VERSION"))
}

fn existing(path: PathBuf, remedy: &str) -> Result<PathBuf> {
    if !path.exists() {
        bail!("{} is missing. Run `{remedy}`.", path.display());
    }
    Ok(path)
}
