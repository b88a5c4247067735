//! wlr-output-management, as labwc, Hyprland, COSMIC, niri and others have it.

use std::path::Path;
use std::time::Duration;

use hospes_protocol::display::Position;
use wayland_client::protocol::wl_callback::WlCallback;
use wayland_client::protocol::wl_registry;
use wayland_client::{
    Connection, Dispatch, Proxy, QueueHandle, delegate_dispatch, delegate_noop, event_created_child,
};
use wayland_protocols_wlr::output_management::v1::client::{
    zwlr_output_configuration_head_v1::ZwlrOutputConfigurationHeadV1,
    zwlr_output_configuration_v1::{self, ZwlrOutputConfigurationV1},
    zwlr_output_head_v1::{self, ZwlrOutputHeadV1},
    zwlr_output_manager_v1::{self, ZwlrOutputManagerV1},
    zwlr_output_mode_v1::{self, ZwlrOutputModeV1},
};

use super::BackEndError;
use super::heads::{self, Head, Heads};
use super::wayland::{self, Peer, Wayland};
use crate::display::layout::{Goal, Manners, Output, Way};

/// How often a change that crossed with one of the compositor's own is asked for again.
const AGAIN: u32 = 3;

/// A compositor's output manager.
#[derive(Debug)]
pub(crate) struct Wlr {
    wayland: Wayland<State>,
    manager: ZwlrOutputManagerV1,
}

#[derive(Debug, Default)]
struct State {
    advertised: Option<(u32, u32)>,
    serial: u32,
    heads: Heads<ZwlrOutputHeadV1, ZwlrOutputModeV1>,
    /// What it says has changed since we looked.
    changed: bool,
    outcome: Option<Outcome>,
    synced: bool,
    finished: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Succeeded,
    Failed,
    Cancelled,
}

impl wayland::State for State {
    fn synced(&mut self) -> &mut bool {
        &mut self.synced
    }
}

impl Wlr {
    /// Connects to the compositor at `socket`.
    ///
    /// # Errors
    /// [`BackEndError`]: `Missing` where it has no output manager.
    pub(crate) async fn connect(socket: &Path) -> Result<Self, BackEndError> {
        let mut wayland = Wayland::<State>::connect(socket).await?;
        let (name, version) = wayland.state.advertised.ok_or(BackEndError::Missing)?;
        let handle = wayland.handle();
        let manager: ZwlrOutputManagerV1 = wayland.registry.bind(name, version.min(4), &handle, ());
        wayland.synced().await?;
        Ok(Self { wayland, manager })
    }

    /// Who the compositor is.
    pub(crate) const fn peer(&self) -> &Peer {
        &self.wayland.peer
    }

    /// niri follows the VM's display by itself, and no more once it was told a size.
    pub(crate) fn manners(&self) -> Manners {
        let follows = self.peer().name == "niri";
        let patience = if follows { Duration::from_secs(5) } else { Duration::ZERO };
        Manners { ways: &[Way::Listed, Way::Custom], patience, scales: true }
    }

    /// The screens as the compositor has told them.
    pub(crate) fn outputs(&self) -> Vec<Output> {
        self.wayland.state.heads.iter().map(Head::output).collect()
    }

    /// Returns once the compositor has told something new.
    pub(crate) async fn changed(&mut self) -> Result<(), BackEndError> {
        while !self.wayland.state.changed {
            self.wayland.dispatch().await?;
            self.check()?;
        }
        self.wayland.state.changed = false;
        Ok(())
    }

    fn check(&self) -> Result<(), BackEndError> {
        if self.wayland.state.finished {
            return Err(BackEndError::Ended("the compositor took its output manager away".to_owned()));
        }
        Ok(())
    }

    /// Asks for this, and hears what the compositor says.
    pub(crate) async fn apply(&mut self, goals: &[Goal], way: Way) -> Result<(), BackEndError> {
        for _ in 0..AGAIN {
            let configuration = self.ask(goals, way);
            self.wayland.state.outcome = None;
            configuration.apply();
            let outcome = loop {
                if let Some(outcome) = self.wayland.state.outcome {
                    break outcome;
                }
                self.wayland.dispatch().await?;
                self.check()?;
            };
            configuration.destroy();
            match outcome {
                Outcome::Succeeded => return Ok(()),
                Outcome::Failed => return Err(BackEndError::Refused("it failed to apply it".to_owned())),
                // It changed something itself meanwhile, and has told us what or is about to.
                Outcome::Cancelled => self.wayland.synced().await?,
            }
        }
        Err(BackEndError::Refused("it changed something itself each time".to_owned()))
    }

    fn ask(&self, goals: &[Goal], way: Way) -> ZwlrOutputConfigurationV1 {
        let handle = self.wayland.handle();
        let configuration = self.manager.create_configuration(self.wayland.state.serial, &handle, ());
        // Each of them has to be named.
        for head in self.wayland.state.heads.iter() {
            let goal = goals.iter().find(|goal| goal.name == head.name);
            let keeps_off = !head.enabled && goal.is_none_or(|goal| goal.size.is_none());
            if keeps_off {
                configuration.disable_head(&head.proxy);
                continue;
            }
            let ask = configuration.enable_head(&head.proxy, &handle, ());
            let Some(goal) = goal else { continue };
            if let Some(size) = goal.size.filter(|size| Some(*size) != head.size()) {
                let listed = head.modes.iter().filter(|(_, mode)| mode.size == size);
                let listed = listed.max_by_key(|(_, mode)| (mode.preferred, mode.refresh));
                match listed {
                    Some((mode, _)) if way == Way::Listed => ask.set_mode(mode),
                    _ => {
                        let int = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
                        ask.set_custom_mode(int(size.width), int(size.height), int(goal.refresh));
                    }
                }
            }
            ask.set_position(goal.position.x, goal.position.y);
            ask.set_scale(f64::from(goal.scale.0) / 1000.0);
        }
        configuration
    }
}

impl Dispatch<wl_registry::WlRegistry, ()> for State {
    fn event(
        state: &mut Self,
        _: &wl_registry::WlRegistry,
        event: wl_registry::Event,
        (): &(),
        _: &Connection,
        _: &QueueHandle<Self>,
    ) {
        if let wl_registry::Event::Global { name, interface, version } = event
            && interface == ZwlrOutputManagerV1::interface().name
        {
            state.advertised = Some((name, version));
        }
    }
}

delegate_dispatch!(State: [WlCallback: ()] => wayland::Sync);
delegate_noop!(State: ignore ZwlrOutputConfigurationHeadV1);

impl Dispatch<ZwlrOutputManagerV1, ()> for State {
    fn event(
        state: &mut Self,
        _: &ZwlrOutputManagerV1,
        event: zwlr_output_manager_v1::Event,
        (): &(),
        _: &Connection,
        _: &QueueHandle<Self>,
    ) {
        match event {
            zwlr_output_manager_v1::Event::Head { head } => state.heads.add(head),
            zwlr_output_manager_v1::Event::Done { serial } => {
                state.serial = serial;
                state.changed = true;
            }
            zwlr_output_manager_v1::Event::Finished => state.finished = true,
            _ => (),
        }
    }

    event_created_child!(State, ZwlrOutputManagerV1, [
        zwlr_output_manager_v1::EVT_HEAD_OPCODE => (ZwlrOutputHeadV1, ()),
    ]);
}

impl Dispatch<ZwlrOutputHeadV1, ()> for State {
    fn event(
        state: &mut Self,
        proxy: &ZwlrOutputHeadV1,
        event: zwlr_output_head_v1::Event,
        (): &(),
        _: &Connection,
        _: &QueueHandle<Self>,
    ) {
        use zwlr_output_head_v1::Event;
        if matches!(event, Event::Finished) {
            state.heads.remove(proxy);
            if proxy.version() >= 3 {
                proxy.release();
            }
            return;
        }
        let Some(head) = state.heads.get_mut(proxy) else { return };
        match event {
            Event::Name { name } => head.name = name,
            Event::Mode { mode } => head.add_mode(mode),
            Event::Enabled { enabled } => head.enabled = enabled != 0,
            Event::CurrentMode { mode } => head.current = Some(mode),
            Event::Position { x, y } => head.position = Position { x, y },
            Event::Transform { transform } => head.transform(transform.into()),
            Event::Scale { scale } => head.scale = scale,
            _ => (),
        }
    }

    event_created_child!(State, ZwlrOutputHeadV1, [
        zwlr_output_head_v1::EVT_MODE_OPCODE => (ZwlrOutputModeV1, ()),
    ]);
}

impl Dispatch<ZwlrOutputModeV1, ()> for State {
    fn event(
        state: &mut Self,
        proxy: &ZwlrOutputModeV1,
        event: zwlr_output_mode_v1::Event,
        (): &(),
        _: &Connection,
        _: &QueueHandle<Self>,
    ) {
        use zwlr_output_mode_v1::Event;
        if matches!(event, Event::Finished) {
            state.heads.remove_mode(proxy);
            if proxy.version() >= 3 {
                proxy.release();
            }
            return;
        }
        let Some(mode) = state.heads.mode_mut(proxy) else { return };
        match event {
            Event::Size { width, height } => mode.size = heads::size(width, height),
            Event::Refresh { refresh } => mode.refresh = heads::refresh(refresh),
            Event::Preferred => mode.preferred = true,
            _ => (),
        }
    }
}

impl Dispatch<ZwlrOutputConfigurationV1, ()> for State {
    fn event(
        state: &mut Self,
        _: &ZwlrOutputConfigurationV1,
        event: zwlr_output_configuration_v1::Event,
        (): &(),
        _: &Connection,
        _: &QueueHandle<Self>,
    ) {
        use zwlr_output_configuration_v1::Event;
        state.outcome = match event {
            Event::Succeeded => Some(Outcome::Succeeded),
            Event::Failed => Some(Outcome::Failed),
            Event::Cancelled => Some(Outcome::Cancelled),
            _ => return,
        };
    }
}
