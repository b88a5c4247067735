//! An X server, by RandR 1.2 and newer (randrproto.txt): modes are made where none fits, and the screen that all outputs
//! share grows and shrinks with them. X has no scale.

mod timing;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hospes_clipboard::readiness::register;
use hospes_protocol::display::{Position, Scale, Size};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::spawn_blocking;
use x11rb::connection::{Connection, RequestConnection};
use x11rb::errors::{ConnectionError, ReplyError, ReplyOrIdError};
use x11rb::protocol::randr::{
    self, Connection as Connected, ConnectionExt as _, Crtc, GetCrtcInfoReply, GetOutputInfoReply,
    GetScreenResourcesCurrentReply, ModeFlag, ModeInfo, NotifyMask, Rotation, SetConfig,
};
use x11rb::protocol::xproto::{ConnectionExt as _, Window};
use x11rb::rust_connection::RustConnection;

use self::timing::Timing;
use super::BackEndError;
use crate::display::layout::{Goal, Manners, Mode, Output, Way};

/// What the names of modes that we made begin with.
const OURS: &str = "hospes-";
/// Outputs that are looked at.
const OUTPUTS: usize = 64;

/// A running X server.
#[derive(Debug)]
pub(crate) struct X11 {
    server: Arc<Server>,
    readiness: AsyncFd<OwnedFd>,
}

struct Server {
    connection: RustConnection,
    root: Window,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("root", &self.root).finish_non_exhaustive()
    }
}

/// One output, and what drives it.
struct Driven {
    id: randr::Output,
    info: GetOutputInfoReply,
    name: String,
    crtc: Option<(Crtc, GetCrtcInfoReply)>,
}

impl X11 {
    pub(crate) const MANNERS: Manners =
        Manners { ways: &[Way::Listed, Way::Custom], patience: Duration::ZERO, scales: false };

    /// Connects to the display of this name (`:0`), with the cookie that this file has for it.
    ///
    /// # Errors
    /// [`BackEndError`]: `Missing` where the server has no RandR, or is Xwayland: its outputs are the compositor's.
    pub(crate) async fn connect(display: &str, authority: Option<&Path>) -> Result<Self, BackEndError> {
        let (display, authority) = (display.to_owned(), authority.map(Path::to_owned));
        let server = blocking(move || Server::connect(&display, authority.as_deref())).await?;
        let unreachable = |error: std::io::Error| BackEndError::Unreachable(error.to_string());
        let fd = server.connection.stream().as_fd().try_clone_to_owned().map_err(unreachable)?;
        let readiness = register(fd, Interest::READABLE).map_err(unreachable)?;
        Ok(Self { server: Arc::new(server), readiness })
    }

    pub(crate) async fn outputs(&self) -> Result<Vec<Output>, BackEndError> {
        let server = Arc::clone(&self.server);
        blocking(move || Ok(server.outputs()?)).await
    }

    pub(crate) async fn apply(&self, goals: &[Goal], way: Way) -> Result<(), BackEndError> {
        let (server, goals) = (Arc::clone(&self.server), goals.to_vec());
        blocking(move || server.apply(&goals, way)).await
    }

    /// Returns once the screens may have changed.
    pub(crate) async fn changed(&mut self) -> Result<(), BackEndError> {
        let ended = |error: &dyn std::fmt::Display| BackEndError::Ended(error.to_string());
        loop {
            let mut any = false;
            // Some may have been read along with the answer to a request.
            while let Some(event) = self.server.connection.poll_for_event().map_err(|error| ended(&error))? {
                any |= matches!(
                    event,
                    x11rb::protocol::Event::RandrNotify(_)
                        | x11rb::protocol::Event::RandrScreenChangeNotify(_)
                );
            }
            if any {
                return Ok(());
            }
            self.readiness.readable().await.map_err(|error| ended(&error))?.clear_ready();
        }
    }
}

/// Does what waits for the server on a thread of its own.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BackEndError> + Send + 'static,
) -> Result<T, BackEndError> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(BackEndError::Ended(error.to_string())))
}

impl From<ReplyError> for BackEndError {
    fn from(error: ReplyError) -> Self {
        match error {
            ReplyError::ConnectionError(error) => error.into(),
            ReplyError::X11Error(error) => Self::Refused(format!("{:?}", error.error_kind)),
        }
    }
}

impl From<ReplyOrIdError> for BackEndError {
    fn from(error: ReplyOrIdError) -> Self {
        match error {
            ReplyOrIdError::ConnectionError(error) => error.into(),
            ReplyOrIdError::X11Error(error) => Self::Refused(format!("{:?}", error.error_kind)),
            ReplyOrIdError::IdsExhausted => Self::Ended("the server's numbers are used up".to_owned()),
        }
    }
}

impl From<ConnectionError> for BackEndError {
    fn from(error: ConnectionError) -> Self {
        Self::Ended(error.to_string())
    }
}

impl Server {
    fn connect(display: &str, authority: Option<&Path>) -> Result<Self, BackEndError> {
        let connection = hospes_clipboard::back_end::x11::open(display, authority)
            .map_err(|error| BackEndError::Unreachable(error.to_string()))?;
        let root = connection.setup().roots.first().ok_or(BackEndError::Missing)?.root;
        let has = |name| connection.extension_information(name).map(|found| found.is_some());
        if !has(randr::X11_EXTENSION_NAME)? || has("XWAYLAND")? {
            return Err(BackEndError::Missing);
        }
        let version = connection.randr_query_version(1, 5)?.reply()?;
        if (version.major_version, version.minor_version) < (1, 3) {
            return Err(BackEndError::Missing);
        }
        let news = NotifyMask::SCREEN_CHANGE | NotifyMask::CRTC_CHANGE | NotifyMask::OUTPUT_CHANGE;
        connection.randr_select_input(root, news)?.check()?;
        Ok(Self { connection, root })
    }

    fn resources(&self) -> Result<(GetScreenResourcesCurrentReply, Vec<Driven>), ReplyError> {
        let resources = self.connection.randr_get_screen_resources_current(self.root)?.reply()?;
        let mut driven = Vec::new();
        for id in resources.outputs.iter().copied().take(OUTPUTS) {
            let info = self.connection.randr_get_output_info(id, resources.config_timestamp)?.reply()?;
            if info.connection == Connected::DISCONNECTED {
                continue;
            }
            let crtc = match info.crtc {
                0 => None,
                crtc => {
                    let info =
                        self.connection.randr_get_crtc_info(crtc, resources.config_timestamp)?.reply()?;
                    Some((crtc, info))
                }
            };
            let name = String::from_utf8_lossy(&info.name).into_owned();
            driven.push(Driven { id, info, name, crtc });
        }
        Ok((resources, driven))
    }

    fn outputs(&self) -> Result<Vec<Output>, ReplyError> {
        let (resources, driven) = self.resources()?;
        let mode = |id: u32| resources.modes.iter().find(|mode| mode.id == id);
        let output = |driven: &Driven| {
            let preferred = usize::from(driven.info.num_preferred);
            let modes = driven.info.modes.iter().enumerate().filter_map(|(at, id)| {
                let info = mode(*id)?;
                let (size, refresh) = (size(info), refresh(info));
                Some(Mode { size, refresh, preferred: at < preferred, scales: Vec::new() })
            });
            let shown = driven.crtc.as_ref().filter(|(_, crtc)| crtc.mode != 0);
            let current = shown.and_then(|(_, crtc)| mode(crtc.mode));
            Output {
                name: driven.name.clone(),
                size: current.map(size),
                refresh: current.map_or(0, refresh),
                scale: Scale::ONE,
                position: shown.map_or_else(Position::default, |(_, crtc)| Position {
                    x: i32::from(crtc.x),
                    y: i32::from(crtc.y),
                }),
                turned: shown.is_some_and(|(_, crtc)| is_turned(crtc.rotation)),
                modes: modes.collect(),
            }
        };
        Ok(driven.iter().map(output).collect())
    }

    fn apply(&self, goals: &[Goal], way: Way) -> Result<(), BackEndError> {
        let (resources, driven) = self.resources()?;
        let mut plan = Vec::new();
        for driven in &driven {
            let Some((crtc, info)) = driven.crtc.as_ref().filter(|(_, crtc)| crtc.mode != 0) else {
                continue;
            };
            let goal = goals.iter().find(|goal| goal.name == driven.name);
            let now = resources.modes.iter().find(|mode| mode.id == info.mode).map(size);
            let wanted = goal.and_then(|goal| goal.size);
            let mode = match (goal, wanted) {
                (Some(goal), Some(wanted)) if Some(wanted) != now => {
                    self.mode(&resources, driven, wanted, goal.refresh, way)?
                }
                _ => info.mode,
            };
            let place = goal
                .map_or((i32::from(info.x), i32::from(info.y)), |goal| (goal.position.x, goal.position.y));
            let size = wanted.or(now).unwrap_or(Size { width: 0, height: 0 });
            plan.push((*crtc, info, mode, place, size));
        }
        // The screen begins at its own corner.
        let least =
            |place: fn(&(i32, i32)) -> i32| plan.iter().map(|(.., at, _)| place(at)).min().unwrap_or(0);
        let (left, top) = (least(|at| at.0), least(|at| at.1));
        let short = |number: i32| i16::try_from(number).unwrap_or(i16::MAX);
        let (mut width, mut height) = (0, 0);
        for (_, info, _, place, size) in &mut plan {
            *place = (place.0 - left, place.1 - top);
            let (across, down) =
                if is_turned(info.rotation) { (size.height, size.width) } else { (size.width, size.height) };
            let end = |from: i32, len: u32| u32::try_from(from).unwrap_or(0).saturating_add(len);
            width = width.max(end(place.0, across));
            height = height.max(end(place.1, down));
        }
        let geometry = self.connection.get_geometry(self.root)?.reply()?;
        let (old_width, old_height) = (u32::from(geometry.width), u32::from(geometry.height));
        // Nobody else sees the steps between.
        let grabbed = self.connection.grab_server()?;
        let done = (|| {
            // No output may show what is beyond the screen, at any time.
            self.resize((old_width, old_height), (width.max(old_width), height.max(old_height)))?;
            for (crtc, info, mode, place, _) in &plan {
                let (x, y) = (short(place.0), short(place.1));
                if (*mode, x, y) == (info.mode, info.x, info.y) {
                    continue;
                }
                let (time, config) = (x11rb::CURRENT_TIME, resources.config_timestamp);
                let set = self.connection.randr_set_crtc_config(
                    *crtc,
                    time,
                    config,
                    x,
                    y,
                    *mode,
                    info.rotation,
                    &info.outputs,
                )?;
                let status = set.reply()?.status;
                if status != SetConfig::SUCCESS {
                    return Err(BackEndError::Refused(format!("the server answered {status:?}")));
                }
            }
            self.resize((width.max(old_width), height.max(old_height)), (width, height))
        })();
        drop(grabbed);
        self.connection.ungrab_server()?.check()?;
        done?;
        self.tidy();
        Ok(())
    }

    fn resize(&self, from: (u32, u32), to: (u32, u32)) -> Result<(), BackEndError> {
        if from == to {
            return Ok(());
        }
        let pixels = |len: u32| u16::try_from(len).unwrap_or(u16::MAX);
        // At 96 dots an inch, as X servers have it where nobody knows.
        let mm = |len: u32| len * 254 / 960;
        let (width, height) = (pixels(to.0), pixels(to.1));
        Ok(self.connection.randr_set_screen_size(self.root, width, height, mm(to.0), mm(to.1))?.check()?)
    }

    /// A mode of this size that the output can have.
    fn mode(
        &self,
        resources: &GetScreenResourcesCurrentReply,
        driven: &Driven,
        wanted: Size,
        refresh: u32,
        way: Way,
    ) -> Result<u32, BackEndError> {
        let of_size = |id: &&u32| resources.modes.iter().any(|mode| mode.id == **id && size(mode) == wanted);
        if let Some(listed) = driven.info.modes.iter().find(of_size) {
            return Ok(*listed);
        }
        if way == Way::Listed {
            return Err(BackEndError::Refused(format!("{} lists no mode of {wanted}", driven.name)));
        }
        let made = resources.modes.iter().zip(names(resources));
        let mut made = made.filter(|(mode, name)| name.starts_with(OURS.as_bytes()) && size(mode) == wanted);
        let id = match made.next() {
            Some((mode, _)) => mode.id,
            None => {
                let name = format!("{OURS}{wanted}-{refresh}");
                let info = info(Timing::reduced(wanted, refresh), &name);
                self.connection.randr_create_mode(self.root, info, name.as_bytes())?.reply()?.mode
            }
        };
        self.connection.randr_add_output_mode(driven.id, id)?.check()?;
        Ok(id)
    }

    /// Takes away the modes that we made and nothing shows any more.
    fn tidy(&self) {
        let Ok((resources, driven)) = self.resources() else { return };
        let used = |id: u32| {
            driven.iter().any(|driven| driven.crtc.as_ref().is_some_and(|(_, crtc)| crtc.mode == id))
        };
        for (mode, name) in resources.modes.iter().zip(names(&resources)) {
            if !name.starts_with(OURS.as_bytes()) || used(mode.id) {
                continue;
            }
            for driven in driven.iter().filter(|driven| driven.info.modes.contains(&mode.id)) {
                if let Ok(deleted) = self.connection.randr_delete_output_mode(driven.id, mode.id) {
                    let _ = deleted.check();
                }
            }
            if let Ok(destroyed) = self.connection.randr_destroy_mode(mode.id) {
                let _ = destroyed.check();
            }
        }
    }
}

/// The modes' names, which come one behind the other.
fn names(resources: &GetScreenResourcesCurrentReply) -> impl Iterator<Item = &[u8]> {
    let mut rest = &resources.names[..];
    resources.modes.iter().map(move |mode| {
        let (name, behind) = rest.split_at_checked(usize::from(mode.name_len)).unwrap_or((rest, &[]));
        rest = behind;
        name
    })
}

fn size(mode: &ModeInfo) -> Size {
    Size { width: mode.width.into(), height: mode.height.into() }
}

fn refresh(mode: &ModeInfo) -> u32 {
    let all = u64::from(mode.htotal) * u64::from(mode.vtotal);
    (u64::from(mode.dot_clock) * 1000).checked_div(all).and_then(|mhz| u32::try_from(mhz).ok()).unwrap_or(0)
}

fn is_turned(rotation: Rotation) -> bool {
    rotation.contains(Rotation::ROTATE90) || rotation.contains(Rotation::ROTATE270)
}

fn info(timing: Timing, name: &str) -> ModeInfo {
    ModeInfo {
        id: 0,
        width: timing.width,
        height: timing.height,
        dot_clock: timing.clock,
        hsync_start: timing.x_sync.0,
        hsync_end: timing.x_sync.1,
        htotal: timing.x_total,
        hskew: 0,
        vsync_start: timing.y_sync.0,
        vsync_end: timing.y_sync.1,
        vtotal: timing.y_total,
        name_len: u16::try_from(name.len()).unwrap_or(0),
        mode_flags: ModeFlag::HSYNC_POSITIVE | ModeFlag::VSYNC_NEGATIVE,
    }
}
