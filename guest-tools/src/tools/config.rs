//! `hospes-tools config`.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Subcommand;

use super::UNHEALTHY;
use crate::config::{self, ConfigError};
use crate::daemon::users;
use crate::paths::Paths;

/// The policy of /etc/hospes/tools.toml.
#[derive(Debug, Subcommand)]
pub(super) enum Config {
    /// Print every setting as it is in force, what is built in included
    Show,
    /// Say whether the file is right, before or after it is put in its place
    Check {
        /// Another file than /etc/hospes/tools.toml
        file: Option<PathBuf>,
    },
}

impl Config {
    pub(super) fn run(&self, paths: &Paths, out: &mut impl Write) -> anyhow::Result<u8> {
        match self {
            Self::Show => {
                let (config, source) = config::Config::load(paths)?;
                let source = source.map_or_else(|| "built in".into(), |path| path.display().to_string());
                write!(out, "# {source}\n\n{}", toml::to_string(&config)?)?;
                Ok(0)
            }
            Self::Check { file } => {
                let path = file.clone().unwrap_or_else(|| paths.config());
                let checked = match (fs::read_to_string(&path), file) {
                    // No file is no mistake, unless it was named.
                    (Err(error), None) if error.kind() == std::io::ErrorKind::NotFound => {
                        Ok(config::Config::default())
                    }
                    (text, _) => {
                        let text = text.with_context(|| format!("{} cannot be read", path.display()))?;
                        config::Config::parse(&text, &path)
                    }
                };
                report(checked, &path.display().to_string(), out)
            }
        }
    }
}

fn report(
    checked: Result<config::Config, ConfigError>,
    path: &str,
    out: &mut impl Write,
) -> anyhow::Result<u8> {
    match checked {
        Err(error) => {
            writeln!(out, "{error}")?;
            Ok(UNHEALTHY)
        }
        Ok(config) => {
            for name in config.users.allow.iter().filter(|name| *name != "*") {
                if !users::exists(name) {
                    writeln!(out, "Note: [users] allow has {name}, and this guest has no such user")?;
                }
            }
            writeln!(out, "{path} is right")?;
            Ok(0)
        }
    }
}
