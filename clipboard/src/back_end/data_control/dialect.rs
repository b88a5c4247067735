//! The two protocols under one face. They differ in their names alone.

use std::os::fd::BorrowedFd;

use hospes_protocol::clipboard::Selection;
use wayland_client::backend::ObjectId;
use wayland_client::protocol::wl_registry::WlRegistry;
use wayland_client::protocol::wl_seat::WlSeat;
use wayland_client::{Connection, Dispatch, Proxy, QueueHandle, event_created_child};
use wayland_protocols::ext::data_control::v1::client::{
    ext_data_control_device_v1 as ext_device, ext_data_control_manager_v1 as ext_manager,
    ext_data_control_offer_v1 as ext_offer, ext_data_control_source_v1 as ext_source,
};
use wayland_protocols_wlr::data_control::v1::client::{
    zwlr_data_control_device_v1 as wlr_device, zwlr_data_control_manager_v1 as wlr_manager,
    zwlr_data_control_offer_v1 as wlr_offer, zwlr_data_control_source_v1 as wlr_source,
};

use super::State;

/// From here on zwlr-data-control has the primary selection.
const WLR_PRIMARY: u32 = 2;

pub(super) enum Manager {
    Ext(ext_manager::ExtDataControlManagerV1),
    Wlr(wlr_manager::ZwlrDataControlManagerV1),
}

pub(super) enum Device {
    Ext(ext_device::ExtDataControlDeviceV1),
    Wlr(wlr_device::ZwlrDataControlDeviceV1),
}

pub(super) enum Offer {
    Ext(ext_offer::ExtDataControlOfferV1),
    Wlr(wlr_offer::ZwlrDataControlOfferV1),
}

pub(super) enum Source {
    Ext(ext_source::ExtDataControlSourceV1),
    Wlr(wlr_source::ZwlrDataControlSourceV1),
}

impl Manager {
    /// Binds what was advertised, the newer protocol first.
    pub(super) fn bind(
        registry: &WlRegistry,
        ext: Option<(u32, u32)>,
        wlr: Option<(u32, u32)>,
        handle: &QueueHandle<State>,
    ) -> Option<Self> {
        match (ext, wlr) {
            (Some((name, _)), _) => Some(Self::Ext(registry.bind(name, 1, handle, ()))),
            (None, Some((name, version))) => {
                Some(Self::Wlr(registry.bind(name, version.min(WLR_PRIMARY), handle, ())))
            }
            (None, None) => None,
        }
    }

    pub(super) fn has_primary(&self) -> bool {
        match self {
            Self::Ext(_) => true,
            Self::Wlr(manager) => manager.version() >= WLR_PRIMARY,
        }
    }

    pub(super) fn device(&self, seat: &WlSeat, handle: &QueueHandle<State>) -> Device {
        match self {
            Self::Ext(manager) => Device::Ext(manager.get_data_device(seat, handle, ())),
            Self::Wlr(manager) => Device::Wlr(manager.get_data_device(seat, handle, ())),
        }
    }

    pub(super) fn source(&self, handle: &QueueHandle<State>) -> Source {
        match self {
            Self::Ext(manager) => Source::Ext(manager.create_data_source(handle, ())),
            Self::Wlr(manager) => Source::Wlr(manager.create_data_source(handle, ())),
        }
    }
}

impl Device {
    pub(super) fn set(&self, selection: Selection, source: Option<&Source>) {
        let primary = selection == Selection::PRIMARY;
        match self {
            Self::Ext(device) => {
                let source =
                    source.and_then(|source| if let Source::Ext(s) = source { Some(s) } else { None });
                if primary { device.set_primary_selection(source) } else { device.set_selection(source) }
            }
            Self::Wlr(device) => {
                let source =
                    source.and_then(|source| if let Source::Wlr(s) = source { Some(s) } else { None });
                if primary { device.set_primary_selection(source) } else { device.set_selection(source) }
            }
        }
    }
}

impl Offer {
    pub(super) fn id(&self) -> ObjectId {
        match self {
            Self::Ext(offer) => offer.id(),
            Self::Wlr(offer) => offer.id(),
        }
    }

    pub(super) fn receive(&self, kind: &str, into: BorrowedFd<'_>) {
        match self {
            Self::Ext(offer) => offer.receive(kind.to_owned(), into),
            Self::Wlr(offer) => offer.receive(kind.to_owned(), into),
        }
    }

    pub(super) fn destroy(&self) {
        match self {
            Self::Ext(offer) => offer.destroy(),
            Self::Wlr(offer) => offer.destroy(),
        }
    }
}

impl Source {
    pub(super) fn id(&self) -> ObjectId {
        match self {
            Self::Ext(source) => source.id(),
            Self::Wlr(source) => source.id(),
        }
    }

    pub(super) fn offer(&self, name: &str) {
        match self {
            Self::Ext(source) => source.offer(name.to_owned()),
            Self::Wlr(source) => source.offer(name.to_owned()),
        }
    }

    pub(super) fn destroy(&self) {
        match self {
            Self::Ext(source) => source.destroy(),
            Self::Wlr(source) => source.destroy(),
        }
    }
}

macro_rules! dispatch {
    ($variant:ident, $manager:ident::$Manager:ident, $device:ident::$Device:ident, $offer:ident::$Offer:ident,
     $source:ident::$Source:ident, $created:path) => {
        impl Dispatch<$manager::$Manager, ()> for State {
            fn event(
                _: &mut Self,
                _: &$manager::$Manager,
                _: $manager::Event,
                (): &(),
                _: &Connection,
                _: &QueueHandle<Self>,
            ) {
            }
        }

        impl Dispatch<$device::$Device, ()> for State {
            fn event(
                state: &mut Self,
                _: &$device::$Device,
                event: $device::Event,
                (): &(),
                _: &Connection,
                _: &QueueHandle<Self>,
            ) {
                match event {
                    $device::Event::DataOffer { id } => state.introduced(Offer::$variant(id)),
                    $device::Event::Selection { id } => {
                        state.selected(Selection::CLIPBOARD, id.map(|offer| offer.id()).as_ref());
                    }
                    $device::Event::PrimarySelection { id } => {
                        state.selected(Selection::PRIMARY, id.map(|offer| offer.id()).as_ref());
                    }
                    $device::Event::Finished => state.finished = true,
                    // A later version's event.
                    _ => (),
                }
            }

            event_created_child!(State, $device::$Device, [$created => ($offer::$Offer, ())]);
        }

        impl Dispatch<$offer::$Offer, ()> for State {
            fn event(
                state: &mut Self,
                offer: &$offer::$Offer,
                event: $offer::Event,
                (): &(),
                _: &Connection,
                _: &QueueHandle<Self>,
            ) {
                if let $offer::Event::Offer { mime_type } = event {
                    state.typed(&offer.id(), mime_type);
                }
            }
        }

        impl Dispatch<$source::$Source, ()> for State {
            fn event(
                state: &mut Self,
                source: &$source::$Source,
                event: $source::Event,
                (): &(),
                _: &Connection,
                _: &QueueHandle<Self>,
            ) {
                match event {
                    $source::Event::Send { mime_type, fd } => state.wanted(&source.id(), mime_type, fd),
                    $source::Event::Cancelled => state.cancelled(&source.id()),
                    _ => (),
                }
            }
        }
    };
}

dispatch!(
    Ext,
    ext_manager::ExtDataControlManagerV1,
    ext_device::ExtDataControlDeviceV1,
    ext_offer::ExtDataControlOfferV1,
    ext_source::ExtDataControlSourceV1,
    ext_device::EVT_DATA_OFFER_OPCODE
);
dispatch!(
    Wlr,
    wlr_manager::ZwlrDataControlManagerV1,
    wlr_device::ZwlrDataControlDeviceV1,
    wlr_offer::ZwlrDataControlOfferV1,
    wlr_source::ZwlrDataControlSourceV1,
    wlr_device::EVT_DATA_OFFER_OPCODE
);
