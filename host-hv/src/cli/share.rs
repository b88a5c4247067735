//! Folders for a guest, on the command line: `[NAME=]PATH[:ro][:owner=…]`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use host_hv::fuse::{Limits, Owner, OwnerError, Server, ShareSpec};
use host_hv::sandbox::Opener;
use host_hv::virtio::vsock::uds;

/// Options are taken from the end, so that a path may have a colon in it. A folder that is given no name has its own.
pub(crate) fn parse(text: &str) -> Result<ShareSpec, String> {
    let (mut rest, mut read_only, mut owner) = (text, false, Owner::default());
    loop {
        if let Some(before) = rest.strip_suffix(":ro") {
            (rest, read_only) = (before, true);
        } else if let Some((before, word)) = rest.rsplit_once(":owner=") {
            owner = word.parse().map_err(|error: OwnerError| error.to_string())?;
            rest = before;
        } else {
            break;
        }
    }
    // A name has no slash: what has one begins a path.
    let (name, path) = rest.split_once('=').filter(|(name, _)| !name.contains('/')).unzip();
    let path = path.unwrap_or(rest);
    if path.is_empty() {
        return Err("expected [NAME=]PATH[:ro][:owner=…]".to_owned());
    }
    let path = std::path::absolute(path).map_err(|error| format!("{path}: {error}"))?;
    let name = match name {
        Some(name) => name.to_owned(),
        None => {
            own_name(&path).ok_or_else(|| format!("{} has no name: write NAME={text}", path.display()))?
        }
    };
    Ok(ShareSpec { name, path, read_only, owner })
}

/// A server of these folders in this very process, with its control socket, whose path goes with what is returned.
pub(crate) fn serve(shares: Vec<ShareSpec>, control: Option<&Path>) -> Result<(Arc<Server>, Option<Gone>)> {
    let server = Arc::new(Server::new(Limits::within(crate::raise_open_files())));
    for share in shares {
        let name = share.name.clone();
        server.add_share(share).with_context(|| format!("Failed to share \"{name}\""))?;
    }
    let Some(path) = control else { return Ok((server, None)) };
    let begin = || -> Result<()> {
        let listener = uds::bind(path)?;
        let (front, desk) = host_hv::control::pair()?;
        host_hv::control::front(listener, front, Opener::default())?;
        Ok(host_hv::control::desk(desk, Arc::clone(&server))?)
    };
    begin().context("Failed to open the control socket")?;
    Ok((server, Some(Gone(path.to_owned()))))
}

/// A path that is removed when this is dropped.
pub(crate) struct Gone(PathBuf);

impl Drop for Gone {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

fn own_name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_come_last_and_in_any_order() {
        for (text, name, path, read_only, owner) in [
            ("src=/a:b", "src", "/a:b", false, "map:1000:1000"),
            ("src=/a:b:ro", "src", "/a:b", true, "map:1000:1000"),
            ("src=/a:ro:owner=raw", "src", "/a", true, "raw"),
            ("src=/a:owner=squash:1:2:ro", "src", "/a", true, "squash:1:2"),
            ("/home/jo/src", "src", "/home/jo/src", false, "map:1000:1000"),
            ("/home/jo/src/:owner=map", "src", "/home/jo/src/", false, "map:1000:1000"),
            ("/a=b/c", "c", "/a=b/c", false, "map:1000:1000"),
        ] {
            let owner = owner.parse().unwrap();
            let spec = ShareSpec { name: name.into(), path: path.into(), read_only, owner };
            assert_eq!(parse(text), Ok(spec), "{text}");
        }
        let here = parse("src").unwrap();
        assert!(here.name == "src" && here.path.is_absolute() && here.path.ends_with("src"));
    }

    #[test]
    fn what_is_no_share_says_what_would_be() {
        for (text, words) in
            [("", "expected [NAME=]PATH"), ("src=", "expected"), ("/", "NAME=/"), ("a=/b:owner=me", "squash")]
        {
            let error = parse(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
