//! Ways to a desktop's screens. All have one face: what the screens are, how they are to be, and when that changed.

mod heads;
pub(crate) mod kwin;
pub(crate) mod mutter;
pub(crate) mod sway;
pub(crate) mod wayland;
pub(crate) mod wlr;
pub(crate) mod x11;

use std::time::Duration;

use self::kwin::KWin;
use self::mutter::Mutter;
use self::sway::Sway;
use self::wlr::Wlr;
use self::x11::X11;
use super::layout::{Goal, Manners, Output, Way};

/// How long a desktop may take over one thing that it was asked.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Why a desktop's screens cannot be reached, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum BackEndError {
    /// It offers no such thing.
    #[error("The compositor offers nothing to set its screens with")]
    Missing,
    /// It cannot be reached.
    #[error("The desktop cannot be reached: {0}")]
    Unreachable(String),
    /// The connection ended.
    #[error("The desktop's connection ended: {0}")]
    Ended(String),
    /// It says nothing.
    #[error("The desktop has not answered for {} s", PATIENCE.as_secs())]
    Silent,
    /// It said no to what was asked. It is still there.
    #[error("{0}")]
    Refused(String),
}

/// A desktop's screens.
#[derive(Debug)]
pub(crate) enum BackEnd {
    Wlr(Wlr),
    Sway(Sway),
    KWin(KWin),
    Mutter(Mutter),
    X11(X11),
}

impl BackEnd {
    /// Its name, for people.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Wlr(_) => "wlr-output-management",
            Self::Sway(_) => "sway",
            Self::KWin(_) => "kde-output-management",
            Self::Mutter(_) => "mutter",
            Self::X11(_) => "randr",
        }
    }

    /// What the desktop can do, and does by itself.
    pub(crate) fn manners(&self) -> Manners {
        match self {
            Self::Wlr(wlr) => wlr.manners(),
            Self::Sway(_) => Sway::MANNERS,
            Self::KWin(kwin) => kwin.manners(),
            Self::Mutter(_) => Mutter::MANNERS,
            Self::X11(_) => X11::MANNERS,
        }
    }

    /// The screens as they are now.
    pub(crate) async fn outputs(&mut self) -> Result<Vec<Output>, BackEndError> {
        let outputs = async {
            match self {
                Self::Wlr(wlr) => Ok(wlr.outputs()),
                Self::Sway(sway) => Ok(sway.outputs()),
                Self::KWin(kwin) => Ok(kwin.outputs()),
                Self::Mutter(mutter) => mutter.outputs().await,
                Self::X11(x11) => x11.outputs().await,
            }
        };
        tokio::time::timeout(PATIENCE, outputs).await.unwrap_or(Err(BackEndError::Silent))
    }

    /// Asks for this. That the desktop says yes means little.
    pub(crate) async fn apply(&mut self, goals: &[Goal], way: Way) -> Result<(), BackEndError> {
        let applied = async {
            match self {
                Self::Wlr(wlr) => wlr.apply(goals, way).await,
                Self::Sway(sway) => sway.apply(goals).await,
                Self::KWin(kwin) => kwin.apply(goals, way).await,
                Self::Mutter(mutter) => mutter.apply(goals).await,
                Self::X11(x11) => x11.apply(goals, way).await,
            }
        };
        tokio::time::timeout(PATIENCE, applied).await.unwrap_or(Err(BackEndError::Silent))
    }

    /// Returns once the screens may have changed. Losing the future loses nothing.
    pub(crate) async fn changed(&mut self) -> Result<(), BackEndError> {
        match self {
            Self::Wlr(wlr) => wlr.changed().await,
            Self::Sway(sway) => sway.changed().await,
            Self::KWin(kwin) => kwin.changed().await,
            Self::Mutter(mutter) => mutter.changed().await,
            Self::X11(x11) => x11.changed().await,
        }
    }
}
