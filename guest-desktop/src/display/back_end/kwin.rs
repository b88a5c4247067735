//! KWin, by kde-output-management-v2. Up to Plasma 6.6 each screen is a global of its own, and since then a registry tells
//! them; sizes that are not listed can be had since version 18.

use std::path::Path;
use std::time::Duration;

use hospes_protocol::display::{Position, Scale, Size};
use wayland_client::protocol::wl_callback::WlCallback;
use wayland_client::protocol::wl_registry;
use wayland_client::{
    Connection, Dispatch, Proxy, QueueHandle, delegate_dispatch, delegate_noop, event_created_child,
};

use self::protocol::{
    kde_mode_list_v2::KdeModeListV2,
    kde_output_configuration_v2::{self, KdeOutputConfigurationV2},
    kde_output_device_mode_v2::{self, KdeOutputDeviceModeV2},
    kde_output_device_registry_v2::{self, KdeOutputDeviceRegistryV2},
    kde_output_device_v2::{self, KdeOutputDeviceV2},
    kde_output_management_v2::KdeOutputManagementV2,
};
use super::BackEndError;
use super::heads::{self, HEADS, Head, Heads};
use super::wayland::{self, Wayland};
use crate::display::layout::{Goal, Manners, Mode, Output, Way};

/// What the description of the protocol becomes.
mod protocol {
    use wayland_client;

    mod interfaces {
        use wayland_client::backend as wayland_backend;

        wayland_scanner::generate_interfaces!("./protocols/kwin-screens.xml");
    }
    use self::interfaces::{
        KDE_MODE_LIST_V2_INTERFACE, KDE_OUTPUT_CONFIGURATION_V2_INTERFACE,
        KDE_OUTPUT_DEVICE_MODE_V2_INTERFACE, KDE_OUTPUT_DEVICE_REGISTRY_V2_INTERFACE,
        KDE_OUTPUT_DEVICE_V2_INTERFACE, KDE_OUTPUT_MANAGEMENT_V2_INTERFACE,
    };
    wayland_scanner::generate_client_code!("./protocols/kwin-screens.xml");
}

/// The oldest version that tells screens' names, and the newest that is spoken here.
const NAMED: u32 = 2;
const NEWEST: u32 = 21;
/// The version that takes sizes of one's own.
const CUSTOM: u32 = 18;
/// How far a size of one's own may be rounded: its width to a multiple of eight (VESA CVT).
const NEAR: u32 = 8;

type Screen = Head<KdeOutputDeviceV2, KdeOutputDeviceModeV2>;

/// A running KWin.
#[derive(Debug)]
pub(crate) struct KWin {
    wayland: Wayland<State>,
    management: KdeOutputManagementV2,
}

#[derive(Debug, Default)]
struct State {
    management: Option<(u32, u32)>,
    registry: Option<u32>,
    /// Screens that are globals: their numbers and versions.
    globals: Vec<(u32, u32)>,
    /// The screens that they became.
    bound: Vec<(u32, KdeOutputDeviceV2)>,
    screens: Heads<KdeOutputDeviceV2, KdeOutputDeviceModeV2>,
    changed: bool,
    outcome: Option<Result<(), String>>,
    why: String,
    synced: bool,
}

impl wayland::State for State {
    fn synced(&mut self) -> &mut bool {
        &mut self.synced
    }
}

impl KWin {
    /// Connects to the compositor at `socket`.
    ///
    /// # Errors
    /// [`BackEndError`]: `Missing` where it is no KWin.
    pub(crate) async fn connect(socket: &Path) -> Result<Self, BackEndError> {
        let mut wayland = Wayland::<State>::connect(socket).await?;
        let (name, version) = wayland.state.management.ok_or(BackEndError::Missing)?;
        let handle = wayland.handle();
        let management = wayland.registry.bind(name, version.min(CUSTOM), &handle, ());
        if let Some(name) = wayland.state.registry {
            let _: KdeOutputDeviceRegistryV2 = wayland.registry.bind(name, NEWEST, &handle, ());
        }
        for (name, version) in std::mem::take(&mut wayland.state.globals) {
            wayland.state.bind(&wayland.registry, name, version, &handle);
        }
        // The registry tells screens, and each of them what it is.
        wayland.synced().await?;
        wayland.synced().await?;
        Ok(Self { wayland, management })
    }

    /// It follows by itself unless somebody chose a mode that is still listed.
    pub(crate) fn manners(&self) -> Manners {
        let ways: &[Way] =
            if self.management.version() >= CUSTOM { &[Way::Listed, Way::Custom] } else { &[Way::Listed] };
        Manners { ways, patience: Duration::from_secs(3), scales: true }
    }

    pub(crate) fn outputs(&self) -> Vec<Output> {
        // One that has not told its name has not told the rest.
        let named = self.wayland.state.screens.iter().filter(|screen| !screen.name.is_empty());
        // One that is off keeps telling a scale, which is nobody's.
        named
            .map(|screen| {
                let output = screen.output();
                Output { scale: if screen.enabled { output.scale } else { Scale::ONE }, ..output }
            })
            .collect()
    }

    pub(crate) async fn changed(&mut self) -> Result<(), BackEndError> {
        loop {
            let handle = self.wayland.handle();
            for (name, version) in std::mem::take(&mut self.wayland.state.globals) {
                self.wayland.state.bind(&self.wayland.registry, name, version, &handle);
            }
            if std::mem::take(&mut self.wayland.state.changed) {
                return Ok(());
            }
            self.wayland.dispatch().await?;
        }
    }

    pub(crate) async fn apply(&mut self, goals: &[Goal], way: Way) -> Result<(), BackEndError> {
        if way == Way::Custom {
            // First they are made, and then they are listed, rounded.
            let configuration = self.management.create_configuration(&self.wayland.handle(), ());
            for (screen, goal, size) in self.resized(goals) {
                let list = self.management.create_mode_list(&self.wayland.handle(), ());
                list.set_resolution(size.width, size.height);
                list.set_refresh_rate(goal.refresh);
                list.set_reduced_blanking(0);
                list.add_mode();
                configuration.set_custom_modes(&screen.proxy, &list);
                list.destroy();
            }
            self.conclude(&configuration).await?;
            self.wayland.synced().await?;
        }
        let configuration = self.management.create_configuration(&self.wayland.handle(), ());
        for (screen, _, size) in self.resized(goals) {
            let mode = nearest(screen, size, if way == Way::Custom { NEAR } else { 0 }).ok_or_else(|| {
                BackEndError::Refused(format!("it made no mode of {size} for {}", screen.name))
            })?;
            configuration.mode(&screen.proxy, mode);
        }
        for goal in goals.iter().filter(|goal| goal.size.is_some()) {
            if let Some(screen) = self.wayland.state.screens.named(&goal.name) {
                configuration.position(&screen.proxy, goal.position.x, goal.position.y);
                configuration.scale(&screen.proxy, f64::from(goal.scale.0) / 1000.0);
            }
        }
        self.conclude(&configuration).await
    }

    /// The screens whose size is to change.
    fn resized<'a>(
        &'a self,
        goals: &'a [Goal],
    ) -> impl Iterator<Item = (&'a Screen, &'a Goal, Size)> + use<'a> {
        goals.iter().filter_map(|goal| {
            let screen = self.wayland.state.screens.named(&goal.name)?;
            let size = goal.size.filter(|size| screen.size() != Some(*size))?;
            Some((screen, goal, size))
        })
    }

    async fn conclude(&mut self, configuration: &KdeOutputConfigurationV2) -> Result<(), BackEndError> {
        self.wayland.state.outcome = None;
        self.wayland.state.why.clear();
        configuration.apply();
        let outcome = loop {
            if let Some(outcome) = self.wayland.state.outcome.take() {
                break outcome;
            }
            self.wayland.dispatch().await?;
        };
        configuration.destroy();
        outcome.map_err(BackEndError::Refused)
    }
}

/// The listed mode that is this size, or the nearest within so many pixels.
fn nearest(screen: &Screen, size: Size, within: u32) -> Option<&KdeOutputDeviceModeV2> {
    let off = |mode: &Mode| mode.size.width.abs_diff(size.width).max(mode.size.height.abs_diff(size.height));
    let near = screen.modes.iter().filter(|(_, mode)| off(mode) <= within);
    near.min_by_key(|(_, mode)| (off(mode), !mode.preferred)).map(|(proxy, _)| proxy)
}

impl State {
    fn bind(
        &mut self,
        registry: &wl_registry::WlRegistry,
        name: u32,
        version: u32,
        handle: &QueueHandle<Self>,
    ) {
        if version >= NAMED && self.bound.len() < HEADS {
            let proxy: KdeOutputDeviceV2 = registry.bind(name, version.min(NEWEST), handle, ());
            self.bound.push((name, proxy.clone()));
            self.screens.add(proxy);
        }
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
        match event {
            wl_registry::Event::Global { name, interface, version } => match interface.as_str() {
                "kde_output_management_v2" => state.management = Some((name, version)),
                "kde_output_device_registry_v2" if version >= NEWEST => state.registry = Some(name),
                "kde_output_device_v2" if state.globals.len() < HEADS => {
                    state.globals.push((name, version));
                }
                _ => (),
            },
            wl_registry::Event::GlobalRemove { name } => {
                state.globals.retain(|(global, _)| *global != name);
                for (_, screen) in state.bound.extract_if(.., |(global, _)| *global == name) {
                    state.screens.remove(&screen);
                }
                state.changed = true;
            }
            _ => (),
        }
    }
}

delegate_dispatch!(State: [WlCallback: ()] => wayland::Sync);
delegate_noop!(State: ignore KdeOutputManagementV2);
delegate_noop!(State: ignore KdeModeListV2);

impl Dispatch<KdeOutputDeviceRegistryV2, ()> for State {
    fn event(
        state: &mut Self,
        _: &KdeOutputDeviceRegistryV2,
        event: kde_output_device_registry_v2::Event,
        (): &(),
        _: &Connection,
        _: &QueueHandle<Self>,
    ) {
        if let kde_output_device_registry_v2::Event::Output { output } = event {
            state.screens.add(output);
        }
    }

    event_created_child!(State, KdeOutputDeviceRegistryV2, [
        kde_output_device_registry_v2::EVT_OUTPUT_OPCODE => (KdeOutputDeviceV2, ()),
    ]);
}

impl Dispatch<KdeOutputDeviceV2, ()> for State {
    fn event(
        state: &mut Self,
        proxy: &KdeOutputDeviceV2,
        event: kde_output_device_v2::Event,
        (): &(),
        _: &Connection,
        _: &QueueHandle<Self>,
    ) {
        use kde_output_device_v2::Event;
        if matches!(event, Event::Removed) {
            state.screens.remove(proxy);
            state.changed = true;
            proxy.release();
            return;
        }
        let Some(screen) = state.screens.get_mut(proxy) else { return };
        match event {
            Event::Geometry { x, y, transform, .. } => {
                screen.position = Position { x, y };
                screen.transform(u32::try_from(transform).unwrap_or_default());
            }
            Event::Mode { mode } => screen.add_mode(mode),
            Event::CurrentMode { mode } => screen.current = Some(mode),
            Event::Scale { factor } => screen.scale = factor,
            Event::Enabled { enabled } => screen.enabled = enabled != 0,
            Event::Name { name } => screen.name = name,
            Event::Done => state.changed = true,
            _ => (),
        }
    }

    event_created_child!(State, KdeOutputDeviceV2, [
        kde_output_device_v2::EVT_MODE_OPCODE => (KdeOutputDeviceModeV2, ()),
    ]);
}

impl Dispatch<KdeOutputDeviceModeV2, ()> for State {
    fn event(
        state: &mut Self,
        proxy: &KdeOutputDeviceModeV2,
        event: kde_output_device_mode_v2::Event,
        (): &(),
        _: &Connection,
        _: &QueueHandle<Self>,
    ) {
        use kde_output_device_mode_v2::Event;
        if matches!(event, Event::Removed) {
            state.screens.remove_mode(proxy);
            return;
        }
        let Some(mode) = state.screens.mode_mut(proxy) else { return };
        match event {
            Event::Size { width, height } => mode.size = heads::size(width, height),
            Event::Refresh { refresh } => mode.refresh = heads::refresh(refresh),
            Event::Preferred => mode.preferred = true,
            _ => (),
        }
    }
}

impl Dispatch<KdeOutputConfigurationV2, ()> for State {
    fn event(
        state: &mut Self,
        _: &KdeOutputConfigurationV2,
        event: kde_output_configuration_v2::Event,
        (): &(),
        _: &Connection,
        _: &QueueHandle<Self>,
    ) {
        use kde_output_configuration_v2::Event;
        match event {
            Event::Applied => state.outcome = Some(Ok(())),
            Event::FailureReason { reason } => state.why = reason,
            Event::Failed => {
                let why = std::mem::take(&mut state.why);
                let why = if why.is_empty() { "it did not say why".to_owned() } else { why };
                state.outcome = Some(Err(why));
            }
        }
    }
}
