//! Who is in charge of the clock: the time service that runs, as systemd tells.

use hospes_protocol::time::Keeper;
use zbus::OwnedObjectPath;

use crate::daemon::systemd::Manager;

/// Units that keep a clock, as distributions call them.
const UNITS: [(&str, Keeper); 9] = [
    ("chrony.service", Keeper::CHRONY),
    ("chronyd.service", Keeper::CHRONY),
    ("systemd-timesyncd.service", Keeper::TIMESYNCD),
    ("ntpsec.service", Keeper::OTHER),
    ("ntp.service", Keeper::OTHER),
    ("ntpd.service", Keeper::OTHER),
    ("openntpd.service", Keeper::OTHER),
    ("ptp4l.service", Keeper::OTHER),
    ("phc2sys.service", Keeper::OTHER),
];

/// Who is in charge, and its unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InCharge {
    /// Who.
    pub keeper: Keeper,
    /// Its unit; empty where it is none.
    pub unit: String,
}

/// What systemd says of a unit (`ListUnitsByNames` of org.freedesktop.systemd1(5)).
type Unit = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

impl InCharge {
    /// Asks systemd. Where it cannot be asked, nobody knows, and somebody may be.
    pub async fn find() -> Self {
        match active().await {
            Ok(units) => Self::of(&units),
            Err(error) => {
                tracing::debug!("Nobody says who keeps the clock: {error}");
                Self { keeper: Keeper::OTHER, unit: String::new() }
            }
        }
    }

    fn of(active: &[String]) -> Self {
        let first = UNITS.iter().find(|(name, _)| active.iter().any(|unit| unit == name));
        first.map_or(Self { keeper: Keeper::NONE, unit: String::new() }, |(name, keeper)| Self {
            keeper: *keeper,
            unit: (*name).to_owned(),
        })
    }
}

async fn active() -> zbus::Result<Vec<String>> {
    let names: Vec<&str> = UNITS.iter().map(|(name, _)| *name).collect();
    let asked = async {
        let manager = Manager::connect().await?;
        manager.call("ListUnitsByNames", &names).await?.body().deserialize::<Vec<Unit>>()
    };
    let units = crate::power::in_time(asked).await?;
    // A service that is being started is in charge in a moment.
    let up = |state: &str| matches!(state, "active" | "activating" | "reloading");
    Ok(units.into_iter().filter(|unit| up(&unit.3)).map(|unit| unit.0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chrony_goes_before_who_else_there_is() {
        let of = |units: &[&str]| {
            InCharge::of(&units.iter().map(|unit| (*unit).to_owned()).collect::<Vec<_>>()).keeper
        };
        assert_eq!(of(&[]), Keeper::NONE);
        assert_eq!(of(&["systemd-timesyncd.service", "chrony.service"]), Keeper::CHRONY);
        assert_eq!(of(&["systemd-timesyncd.service"]), Keeper::TIMESYNCD);
        assert_eq!(of(&["ntpsec.service"]), Keeper::OTHER);
    }
}
