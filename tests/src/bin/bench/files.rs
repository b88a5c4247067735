//! Small files: a tree of ten thousand, host to guest.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::bytes::{scp_to_guest, tar_to_guest};
use crate::rig::{Rig, seconds};
use crate::row::{Row, median};

const ROUNDS: usize = 3;
const DIRECTORIES: usize = 100;
const FILES: usize = 100;

pub(crate) fn measure(rig: &mut Rig) -> Result<Vec<Row>> {
    let tree = rig.host.home().join("tree");
    plant(&tree)?;
    let source = tree.display().to_string();
    let (mut ours, mut tar, mut scp) = (Vec::new(), Vec::new(), Vec::new());
    let clean = || rig.guest.check("rm -rf /dev/shm/bench && install -d -o dev -m 777 /dev/shm/bench");
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let rate = |seconds: f64| (DIRECTORIES * FILES) as f64 / seconds;
    let arrived = || -> Result<()> {
        let count = rig.guest.check("find /dev/shm/bench/tree -type f | wc -l")?;
        ensure!(count.trim() == (DIRECTORIES * FILES).to_string(), "{count} files arrived");
        Ok(())
    };
    for _ in 0..ROUNDS {
        clean()?;
        ours.push(rate(seconds(|| rig.hospes(&["cp", "-q", &source, "dev:/dev/shm/bench/"]))?));
        arrived()?;
        clean()?;
        tar.push(rate(seconds(|| tar_to_guest(rig, rig.host.home(), "tree"))?));
        arrived()?;
        clean()?;
        scp.push(rate(seconds(|| scp_to_guest(rig, &["-q", "-r"], &source))?));
        arrived()?;
    }
    clean()?;
    let [ours_, tar_, scp_] = [&ours, &tar, &scp].map(|samples| median(samples));
    Ok(vec![
        Row::new("files", format!("a tree of {} files by cp", DIRECTORIES * FILES), "files/s", ours_)
            .peer("tar over bare vsock", tar_)
            .peer("scp -r", scp_)
            .at_least(0.8, "tar", tar_)
            .raw(json!({ "hospes": ours, "tar": tar, "scp -r": scp })),
    ])
}

/// Files of 0 to 8 KiB, a hundred to a directory.
fn plant(tree: &Path) -> Result<()> {
    for directory in 0..DIRECTORIES {
        let path = tree.join(format!("directory-{directory}"));
        fs::create_dir_all(&path)?;
        for file in 0..FILES {
            let len = (directory * FILES + file) * 4099 % 8193;
            fs::write(path.join(format!("file-{file}")), vec![b'x'; len])?;
        }
    }
    Ok(())
}
