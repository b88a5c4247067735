//! What a guest needs at least to run our programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use integration_tests::Lab;

/// What Debian 12, Ubuntu 22.04 and RHEL 9 have, the oldest systems that the packages are for.
const GLIBC: (u32, u32) = (2, 34);

/// The packages, and the programs in them.
fn packages() -> Result<[(PathBuf, &'static [&'static str]); 2]> {
    let guest =
        &["usr/libexec/hospes/hospes-toolsd", "usr/libexec/hospes/hospes-session", "usr/bin/hospes-tools"];
    Ok([(Lab::package()?, guest), (Lab::host_package()?, &["usr/bin/hospes"])])
}

#[test]
fn packaged_programs_need_no_glibc_newer_than_2_34() -> Result<()> {
    for (package, programs) in packages()? {
        need_no_newer_glibc(&package, programs)?;
    }
    Ok(())
}

fn need_no_newer_glibc(package: &Path, programs: &[&str]) -> Result<()> {
    let tree = tempfile::tempdir()?;
    let status = Command::new("dpkg-deb").arg("-x").arg(package).arg(tree.path()).status()?;
    ensure!(status.success(), "dpkg-deb could not unpack the package: {status}");
    for name in programs {
        let output = Command::new("aarch64-linux-gnu-readelf")
            .args(["--version-info", "--wide"])
            .arg(tree.path().join(name))
            .output()
            .context("aarch64-linux-gnu-readelf is missing: run `make setup`")?;
        let text = String::from_utf8(output.stdout)?;
        let versions: Vec<(u32, u32)> = text
            .split("GLIBC_")
            .skip(1)
            .filter_map(|rest| {
                let (major, rest) = rest.split_once('.')?;
                let minor = rest.split(|c: char| !c.is_ascii_digit()).next()?;
                Some((major.parse().ok()?, minor.parse().ok()?))
            })
            .collect();
        let newest =
            versions.iter().max().with_context(|| format!("{name} names no version of glibc:\n{text}"))?;
        ensure!(*newest <= GLIBC, "{name} needs glibc {}.{}:\n{text}", newest.0, newest.1);
    }
    Ok(())
}
