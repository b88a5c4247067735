//! `hospes-tools trust`.

use std::io::{self, Read, Write};

use anyhow::{Context, bail};
use clap::Subcommand;
use hospes_protocol::keys::PublicKey;
use nix::unistd::geteuid;
use serde::Serialize;

use super::json;
use crate::audit::printable;
use crate::identity;
use crate::paths::Paths;
use crate::trust::{self, TrustStore};

/// Bytes of a key that is read from the standard input.
const KEY: u64 = 64 * 1024;

/// The hosts that may work in this guest.
#[derive(Debug, Subcommand)]
pub(super) enum Trust {
    /// Print the trusted hosts' fingerprints, and where each is from
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Trust a host by its key, as `hospes key show` prints it there
    Add {
        /// The key, `hospes-ed25519 …`, or - to read keys from the standard input
        #[arg(required = true)]
        key: Vec<String>,
        /// What to call it
        #[arg(long)]
        name: Option<String>,
    },
    /// Trust a host no longer, and end its sessions
    Remove {
        /// Its name, fingerprint or key
        #[arg(required = true)]
        host: Vec<String>,
    },
    /// Forget the first host, so that the next one to come is the first
    Reset,
}

#[derive(Serialize)]
struct Listed {
    fingerprint: String,
    key: String,
    source: String,
    comment: String,
}

impl Trust {
    pub(super) fn run(self, paths: &Paths, out: &mut impl Write) -> anyhow::Result<u8> {
        // The first host's key is root's to read, as the guest's own is.
        if !geteuid().is_root() && paths.state == Paths::default().state {
            bail!("Only root may see and change whom this guest trusts: try with sudo");
        }
        let store = || -> anyhow::Result<TrustStore> {
            let machine = identity::machine(&paths.machine_id)?;
            let paths = Paths { credentials: daemon_credentials(paths), ..paths.clone() };
            Ok(TrustStore::load(&paths, &machine))
        };
        match self {
            Self::List { json } => list(&store()?, json, out)?,
            Self::Add { key, name } => add(paths, &key.join(" "), name.as_deref(), out)?,
            Self::Remove { host } => {
                for host in trust::remove(paths, &store()?, &host.join(" "))? {
                    writeln!(out, "No longer trusted: {} ({})", host.key, host.source)?;
                }
            }
            Self::Reset => {
                let was = trust::reset(paths)?;
                let rest = store()?.hosts.len();
                match (was, rest) {
                    (_, 1..) => {
                        writeln!(
                            out,
                            "Hosts that were added stay trusted, so nobody gets in by being first"
                        )?;
                    }
                    (true, _) => {
                        writeln!(out, "The first host is forgotten: the next one to come is the first")?;
                    }
                    (false, _) => writeln!(out, "No first host was known")?,
                }
            }
        }
        Ok(0)
    }
}

/// Where systemd puts the daemon's credentials: the same that it sees.
fn daemon_credentials(paths: &Paths) -> Option<std::path::PathBuf> {
    let ours = paths.run == Paths::default().run;
    ours.then(|| "/run/credentials/hospes-toolsd.service".into())
}

fn list(store: &TrustStore, as_json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let hosts: Vec<Listed> = store
        .hosts
        .iter()
        .map(|host| Listed {
            fingerprint: host.key.fingerprint(),
            key: host.key.to_text(),
            source: host.source.to_string(),
            comment: printable(host.comment.as_bytes()),
        })
        .collect();
    if as_json {
        return json(&hosts, out);
    }
    for Listed { fingerprint, source, comment, .. } in &hosts {
        writeln!(out, "{}", format!("{fingerprint}  {source}  {comment}").trim_end())?;
    }
    for problem in &store.problems {
        writeln!(out, "Problem: {}", printable(problem.as_bytes()))?;
    }
    if hosts.is_empty() {
        writeln!(out, "No host is trusted")?;
    }
    Ok(())
}

fn add(paths: &Paths, key: &str, name: Option<&str>, out: &mut impl Write) -> anyhow::Result<()> {
    let mut text = key.to_owned();
    if key == "-" {
        text.clear();
        io::stdin().take(KEY).read_to_string(&mut text).context("The standard input cannot be read")?;
    }
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    match lines.as_slice() {
        [] => bail!("There is no key on the standard input"),
        [_, _, ..] if name.is_some() => bail!("--name is for one key, and there are {}", lines.len()),
        _ => {}
    }
    for line in lines {
        let key = PublicKey::from_text(line).context("`hospes key show` on the host prints its key")?;
        let comment = line.split_whitespace().skip(2).collect::<Vec<_>>().join(" ");
        let path = trust::add(paths, &key, &comment, name)?;
        writeln!(out, "Trusted: {key} ({})", path.display())?;
    }
    Ok(())
}
