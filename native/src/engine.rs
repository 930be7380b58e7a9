//! The relaying threads as a class of JavaScript: one instance belongs to one environment, and ends with it.

use std::cell::RefCell;
use std::rc::Rc;

use napi::bindgen_prelude::{Buffer, Env, Function};
use napi::threadsafe_function::ThreadsafeFunctionCallMode::NonBlocking;
use napi_derive::napi;

use crate::relays::{self, Relays, Report, What};
use crate::session::Side;
use crate::system;

/// One thing that has happened; fields that do not belong to its kind are 0.
#[napi(object, object_from_js = false)]
pub struct NativeEvent {
    pub id: i64,
    pub kind: &'static str,
    pub side: &'static str,
    pub errno: i32,
    pub closed_by_us: bool,
    pub from_client: i64,
    pub from_upstream: i64,
}

#[napi(js_name = "Relays")]
pub struct Engine(Rc<RefCell<Relays>>);

#[napi]
impl Engine {
    /// `on_events` is called when there is something to take. It does not keep the process alive.
    #[napi(constructor, catch_unwind)]
    pub fn new(env: Env, dedicated: u32, on_events: Function<'_, (), ()>) -> napi::Result<Self, String> {
        let ring = on_events
            .build_threadsafe_function::<()>()
            .weak::<true>()
            .build()
            .map_err(node)?;
        let ring = Box::new(move || _ = ring.call((), NonBlocking));
        let relays = Rc::new(RefCell::new(
            Relays::new(dedicated as usize, ring).map_err(system)?,
        ));
        // Before the environment goes, and with it what the threads ring: hooks run in the reverse order of their making.
        let weak = Rc::downgrade(&relays);
        env.add_env_cleanup_hook((), move |()| {
            if let Some(relays) = weak.upgrade() {
                relays.borrow_mut().stop();
            }
        })
        .map_err(node)?;
        Ok(Self(relays))
    }

    #[napi(catch_unwind)]
    pub fn relay(
        &self,
        client: i32,
        upstream: i32,
        from_client: Option<Buffer>,
        from_upstream: Option<Buffer>,
    ) -> napi::Result<i64, String> {
        let owned = |bytes: Option<Buffer>| bytes.map_or_else(Vec::new, |bytes| bytes.to_vec());
        let (from_client, from_upstream) = (owned(from_client), owned(from_upstream));
        let id = self
            .0
            .borrow_mut()
            .relay(client, upstream, from_client, from_upstream)
            .map_err(system)?;
        Ok(id as i64)
    }

    #[napi(catch_unwind)]
    pub fn close(&self, id: i64) {
        self.0.borrow().close(id as u64);
    }

    #[napi(catch_unwind)]
    pub fn bytes(&self, id: i64) -> Option<Vec<i64>> {
        self.0
            .borrow()
            .bytes(id as u64)
            .map(|bytes| bytes.map(|count| count as i64).to_vec())
    }

    #[napi(catch_unwind)]
    pub fn take(&self) -> Vec<NativeEvent> {
        self.0.borrow_mut().take().into_iter().map(shown).collect()
    }

    #[napi(catch_unwind)]
    pub fn stop(&self) {
        self.0.borrow_mut().stop();
    }
}

/// Carries a few bytes through a relay of its own.
#[napi(catch_unwind)]
pub fn self_test() -> napi::Result<(), String> {
    relays::self_test().map_err(system)
}

fn shown(Report { id, what }: Report) -> NativeEvent {
    let nothing = NativeEvent {
        id: id as i64,
        kind: "upstreamEnded",
        side: "none",
        errno: 0,
        closed_by_us: false,
        from_client: 0,
        from_upstream: 0,
    };
    match what {
        What::UpstreamEnded => nothing,
        What::Broke(side) => NativeEvent {
            kind: "broke",
            side: name(side),
            ..nothing
        },
        What::Ended {
            broke,
            closed_by_us,
            bytes: [from_client, from_upstream],
        } => NativeEvent {
            kind: "ended",
            side: broke.map_or("none", |broke| name(broke.side)),
            errno: broke.map_or(0, |broke| broke.errno),
            closed_by_us,
            from_client: from_client as i64,
            from_upstream: from_upstream as i64,
            ..nothing
        },
    }
}

fn name(side: Side) -> &'static str {
    match side {
        Side::Client => "client",
        Side::Upstream => "upstream",
    }
}

/// What Node-API says names only itself.
fn node(error: napi::Error) -> napi::Error<String> {
    napi::Error::new(error.status.to_string(), error.reason.clone())
}
