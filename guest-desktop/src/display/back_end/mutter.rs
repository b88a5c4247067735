//! Mutter, by `org.gnome.Mutter.DisplayConfig` on the session's bus, which GNOME's own settings use.
//!
//! It takes modes that it lists, and no others, and follows the VM's display by itself unless somebody chose a mode that
//! is still listed. Changes are made for now (method 1): those that are to last would ask the user to confirm them.

use std::collections::HashMap;
use std::time::Duration;

use hospes_protocol::display::{Position, Scale, Size};
use zbus::message::Type;
use zbus::{Connection, Message, MessageStream, OwnedVariant, Variant, connection};

use super::BackEndError;
use super::heads::scale;
use crate::display::layout::{Goal, Manners, Mode, Output, Way};

const NAME: &str = "org.gnome.Mutter.DisplayConfig";
const PATH: &str = "/org/gnome/Mutter/DisplayConfig";
const BUS: (&str, &str) = ("org.freedesktop.DBus", "/org/freedesktop/DBus");
/// For now, in Mutter's words: not to be confirmed, not to be kept.
const TEMPORARY: u32 = 1;
/// How often a change that crossed with one of Mutter's own is asked for again.
const AGAIN: u32 = 3;

type Properties = HashMap<String, OwnedVariant>;
/// Connector, vendor, product, serial number.
type Spec = (String, String, String, String);
/// Id, width, height, refresh rate, preferred scale, supported scales.
type WireMode = (String, i32, i32, f64, f64, Vec<f64>, Properties);
type WireMonitor = (Spec, Vec<WireMode>, Properties);
/// X, y, scale, transform, whether primary, monitors.
type WireLogical = (i32, i32, f64, u32, bool, Vec<Spec>, Properties);
/// Serial number, monitors, logical monitors.
type WireState = (u32, Vec<WireMonitor>, Vec<WireLogical>, Properties);

/// A running Mutter.
#[derive(Debug)]
pub(crate) struct Mutter {
    connection: Connection,
    messages: MessageStream,
}

impl Mutter {
    /// A shell draws each step of a drag anew and follows in seconds under emulation.
    pub(crate) const MANNERS: Manners =
        Manners { ways: &[Way::Listed], patience: Duration::from_secs(6), scales: true };

    /// Where Mutter is on the bus at this address.
    ///
    /// # Errors
    /// [`BackEndError`]: `Missing` where it is not.
    pub(crate) async fn connect(address: &str) -> Result<Self, BackEndError> {
        let unreachable = |error: zbus::Error| BackEndError::Unreachable(error.to_string());
        let connection = connection::Builder::address(address).build().await.map_err(unreachable)?;
        let messages = MessageStream::from(&connection);
        let rules = [
            format!("type='signal',sender='{NAME}',interface='{NAME}',member='MonitorsChanged'"),
            format!("type='signal',sender='{}',member='NameOwnerChanged',arg0='{NAME}'", BUS.0),
        ];
        for rule in rules {
            let rule = rule.as_str();
            let added = connection.call_method(Some(BUS.0), BUS.1, Some(BUS.0), "AddMatch", &rule);
            added.await.map_err(unreachable)?;
        }
        let owned = connection.call_method(Some(BUS.0), BUS.1, Some(BUS.0), "NameHasOwner", &NAME);
        let owned: bool = owned.await.and_then(|reply| reply.body().deserialize()).map_err(unreachable)?;
        if !owned {
            return Err(BackEndError::Missing);
        }
        Ok(Self { connection, messages })
    }

    async fn state(&self) -> Result<WireState, BackEndError> {
        let reply = self.connection.call_method(Some(NAME), PATH, Some(NAME), "GetCurrentState", &());
        let reply = reply.await.map_err(|error| BackEndError::Ended(error.to_string()))?;
        reply
            .body()
            .deserialize()
            .map_err(|error| BackEndError::Ended(format!("it is not understood: {error}")))
    }

    pub(crate) async fn outputs(&self) -> Result<Vec<Output>, BackEndError> {
        let (_, monitors, logical, _) = self.state().await?;
        Ok(monitors.iter().map(|monitor| output(monitor, &logical)).collect())
    }

    /// Returns once the screens may have changed.
    pub(crate) async fn changed(&mut self) -> Result<(), BackEndError> {
        while let Some(message) = next(&mut self.messages).await {
            let header = message.header();
            if message.message_type() != Type::Signal {
                continue;
            }
            match header.member().map(|member| member.as_str()) {
                Some("MonitorsChanged") => return Ok(()),
                Some("NameOwnerChanged") => {
                    return Err(BackEndError::Ended("Mutter left the session's bus".to_owned()));
                }
                _ => (),
            }
        }
        Err(BackEndError::Ended("the session's bus went away".to_owned()))
    }

    pub(crate) async fn apply(&self, goals: &[Goal]) -> Result<(), BackEndError> {
        let mut last = String::new();
        for _ in 0..AGAIN {
            let (serial, monitors, logical, properties) = self.state().await?;
            let physical =
                matches!(properties.get("layout-mode").map(|value| &**value), Some(Variant::U32(2)));
            let wanted = ask(goals, &monitors, &logical, physical)?;
            let none: HashMap<&str, Variant<'_>> = HashMap::new();
            let body = (serial, TEMPORARY, wanted, none);
            let call =
                self.connection.call_method(Some(NAME), PATH, Some(NAME), "ApplyMonitorsConfig", &body);
            match call.await {
                Ok(_) => return Ok(()),
                Err(zbus::Error::FDO(error)) => {
                    last = error.to_string();
                    // An older serial number: it changed something itself meanwhile.
                    if !matches!(*error, zbus::fdo::Error::AccessDenied(_)) {
                        break;
                    }
                }
                Err(zbus::Error::MethodError(name, words, _)) => {
                    last = words.unwrap_or_else(|| name.to_string());
                    break;
                }
                Err(error) => return Err(BackEndError::Ended(error.to_string())),
            }
        }
        Err(BackEndError::Refused(last))
    }
}

/// The next message that could be read at all.
async fn next(messages: &mut MessageStream) -> Option<Message> {
    use zbus::export::futures_core::Stream;
    let mut messages = std::pin::pin!(messages);
    std::future::poll_fn(|context| messages.as_mut().poll_next(context)).await?.ok()
}

fn size(mode: &WireMode) -> Size {
    let side = |len: i32| u32::try_from(len).unwrap_or_default();
    Size { width: side(mode.1), height: side(mode.2) }
}

fn has(properties: &Properties, name: &str) -> bool {
    matches!(properties.get(name).map(|value| &**value), Some(Variant::Bool(true)))
}

fn shown_by<'l>(monitor: &WireMonitor, logical: &'l [WireLogical]) -> Option<&'l WireLogical> {
    logical.iter().find(|logical| logical.5.contains(&monitor.0))
}

fn output(monitor: &WireMonitor, logical: &[WireLogical]) -> Output {
    let current = monitor.1.iter().find(|mode| has(&mode.6, "is-current"));
    let shown = shown_by(monitor, logical);
    let modes = monitor.1.iter().map(|mode| Mode {
        size: size(mode),
        refresh: refresh(mode.3),
        preferred: has(&mode.6, "is-preferred"),
        scales: mode.5.iter().map(|number| scale(*number)).collect(),
    });
    Output {
        name: monitor.0.0.clone(),
        size: current.filter(|_| shown.is_some()).map(size),
        refresh: current.map_or(0, |mode| refresh(mode.3)),
        scale: shown.map_or(Scale::ONE, |logical| scale(logical.2)),
        position: shown.map_or_else(Position::default, |logical| Position { x: logical.0, y: logical.1 }),
        turned: shown.is_some_and(|logical| logical.3 % 2 == 1),
        modes: modes.collect(),
    }
}

fn refresh(hertz: f64) -> u32 {
    // The same rounding as a scale's: thousandths.
    scale(hertz).0
}

type AskedMonitor = (String, String, HashMap<&'static str, Variant<'static>>);
type AskedLogical = (i32, i32, f64, u32, bool, Vec<AskedMonitor>);

/// The layout that these goals make. What shows the same on several monitors goes on doing so.
fn ask(
    goals: &[Goal],
    monitors: &[WireMonitor],
    logical: &[WireLogical],
    physical: bool,
) -> Result<Vec<AskedLogical>, BackEndError> {
    let mut asked: Vec<(AskedLogical, i32, bool)> = Vec::new();
    for shown in logical {
        let mut mine = Vec::new();
        let (mut place, mut factor, mut wide, mut placed) = ((shown.0, shown.1), shown.2, 0, false);
        for monitor in monitors.iter().filter(|monitor| shown.5.contains(&monitor.0)) {
            let goal = goals.iter().find(|goal| goal.name == monitor.0.0);
            let current = monitor.1.iter().find(|mode| has(&mode.6, "is-current"));
            let wanted = goal.and_then(|goal| goal.size).or_else(|| current.map(size));
            let fitting = monitor.1.iter().filter(|mode| Some(size(mode)) == wanted);
            let best = |mode: &&WireMode| {
                (has(&mode.6, "is-current"), has(&mode.6, "is-preferred"), refresh(mode.3))
            };
            let Some(mode) = fitting.max_by_key(best) else {
                return Err(BackEndError::Refused(format!("{} has no such mode", monitor.0.0)));
            };
            if let Some(goal) = goal {
                place = (goal.position.x, goal.position.y);
                placed = goal.placed;
                // In the very numbers that it offers: one that is a little off is none to it.
                let near = |number: &&f64| scale(**number).0.abs_diff(goal.scale.0);
                factor = mode.5.iter().min_by_key(near).copied().unwrap_or(factor);
            }
            let across = if shown.3 % 2 == 1 { mode.2 } else { mode.1 };
            let units = if physical { f64::from(across) } else { f64::from(across) / factor };
            #[expect(clippy::cast_possible_truncation, reason = "a cast of a float stops at the limits")]
            let units = units.round() as i32;
            wide = wide.max(units);
            mine.push((monitor.0.0.clone(), mode.0.clone(), HashMap::new()));
        }
        asked.push(((place.0, place.1, factor, shown.3, shown.4, mine), wide, placed));
    }
    // It refuses gaps and overlaps. Screens in a row, as most are, are pushed together.
    let row = asked.iter().all(|(logical, _, placed)| logical.1 == 0 && !placed);
    if row {
        asked.sort_by_key(|(logical, ..)| logical.0);
        let mut x = 0_i32;
        for (logical, wide, _) in &mut asked {
            logical.0 = x;
            x = x.saturating_add(*wide);
        }
    }
    Ok(asked.into_iter().map(|(logical, ..)| logical).collect())
}
