//! Makes a request of librdkafka's admin interface that the safe wrapper lacks. Each request has a queue of its own for its answer.

use std::ffi::{CStr, c_char};
use std::ptr::{self, NonNull};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rdkafka::bindings as native;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::types::RDKafkaRespErr;

const REQUEST_TIMEOUT_MS: i32 = 10_000;
/// librdkafka gives up earlier by itself. If it does not, the call ends after this time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// How long one poll waits for the answer. Between two polls, librdkafka's errors and expiring tokens are served.
const POLL_TIMEOUT_MS: i32 = 100;
/// At most this many events are served in one call.
const EVENTS_MAX: usize = 100;

/// A request that is about to be made.
pub(super) struct AdminRequest<'c, C: ConsumerContext> {
    client: &'c BaseConsumer<C>,
    queue: Queue,
    options: Options,
}

/// The event that answers a request without an error.
pub(super) struct Answer(NonNull<native::rd_kafka_event_t>);

impl<'c, C: ConsumerContext> AdminRequest<'c, C> {
    /// Prepares a request of the kind `op`. The request that [`AdminRequest::answer`] then sends must be of this kind.
    ///
    /// # Errors
    /// librdkafka gives no queue or no options, or refuses the timeout.
    #[expect(unsafe_code, reason = "the safe wrapper lacks the request")]
    pub(super) fn new(client: &'c BaseConsumer<C>, op: native::rd_kafka_admin_op_t) -> anyhow::Result<Self> {
        let native_client = client.client().native_ptr();
        // SAFETY: the client is valid as long as the consumer, which is borrowed for as long as the request lives.
        let queue = unsafe { native::rd_kafka_queue_new(native_client) };
        let queue = Queue(NonNull::new(queue).context("kafka's client gives no queue")?);
        // SAFETY: as above.
        let options = unsafe { native::rd_kafka_AdminOptions_new(native_client, op) };
        let options = Options(NonNull::new(options).context("kafka's client takes no options")?);
        // SAFETY: the options are valid. The buffer for an error's text may be null if its size is 0.
        let code = unsafe {
            native::rd_kafka_AdminOptions_set_request_timeout(
                options.0.as_ptr(),
                REQUEST_TIMEOUT_MS,
                ptr::null_mut(),
                0,
            )
        };
        ensure!(
            code == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR,
            "kafka's client refuses the timeout"
        );
        Ok(Self { client, queue, options })
    }

    /// The options of this request, for what only this kind of request can set.
    pub(super) fn options(&self) -> *mut native::rd_kafka_AdminOptions_t {
        self.options.0.as_ptr()
    }

    /// Calls `send` with the client, the options and the queue for the answer. `send` must send the request. Then waits for the answer. Blocks.
    ///
    /// # Errors
    /// Kafka does not answer, or refuses.
    #[expect(unsafe_code, reason = "the safe wrapper lacks the request")]
    pub(super) fn answer(
        self,
        send: impl FnOnce(*mut native::rd_kafka_t, *const native::rd_kafka_AdminOptions_t, *mut native::rd_kafka_queue_t),
    ) -> anyhow::Result<Answer> {
        send(
            self.client.client().native_ptr(),
            self.options.0.as_ptr(),
            self.queue.0.as_ptr(),
        );
        let started = Instant::now();
        while started.elapsed() < ANSWER_TIMEOUT {
            serve_events(self.client);
            // SAFETY: the queue is valid, and the event is ours until it is destroyed.
            let event = unsafe { native::rd_kafka_queue_poll(self.queue.0.as_ptr(), POLL_TIMEOUT_MS) };
            if let Some(event) = NonNull::new(event) {
                return Answer(event).without_error();
            }
        }
        bail!("kafka does not answer")
    }
}

/// Polls the client, so that librdkafka calls our callbacks: one replaces a token that expires, another notes errors. Nobody else polls a client
/// that only asks questions, and a client whose token has expired gets no answer. The client must read no topic, since its records would be
/// dropped here.
pub(super) fn serve_events(client: &BaseConsumer<impl ConsumerContext>) {
    // Each event takes one poll, and several may have gathered since the last call.
    for _ in 0..EVENTS_MAX {
        match client.poll(Duration::ZERO) {
            Some(Err(err)) => tracing::debug!(error = %err, "kafka"),
            Some(Ok(_)) => {}
            None => return,
        }
    }
}

impl Answer {
    #[expect(unsafe_code, reason = "the answer is in librdkafka's memory")]
    fn without_error(self) -> anyhow::Result<Self> {
        // SAFETY: the event is ours and valid until it is destroyed; the text lives as long.
        unsafe {
            if native::rd_kafka_event_error(self.event()) != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                bail!("{}", text(native::rd_kafka_event_error_string(self.event())));
            }
        }
        Ok(self)
    }

    /// The event. It is valid for as long as this answer.
    pub(super) fn event(&self) -> *mut native::rd_kafka_event_t {
        self.0.as_ptr()
    }
}

/// Copies a text of librdkafka. Null becomes the empty text.
///
/// # Safety
/// The pointer has to be null, or to a text that ends with a zero byte.
#[expect(unsafe_code, reason = "the text is in librdkafka's memory")]
pub(super) unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller has promised it.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// An array of librdkafka as a slice. Null becomes the empty slice.
///
/// # Safety
/// `first` has to be null, or point to `count` elements, which live as long as `'e`.
#[expect(unsafe_code, reason = "the elements are in librdkafka's memory")]
pub(super) unsafe fn slice<'e, T>(first: *const T, count: usize) -> &'e [T] {
    if first.is_null() {
        return &[];
    }
    // SAFETY: the caller has promised it.
    unsafe { std::slice::from_raw_parts(first, count) }
}

struct Queue(NonNull<native::rd_kafka_queue_t>);
struct Options(NonNull<native::rd_kafka_AdminOptions_t>);

/// Implements `Drop` for types that own something of librdkafka. The named function gives it back.
macro_rules! destroyed_on_drop {
    ($($kind:ident: $destroy:ident;)*) => {
        $(impl Drop for $kind {
            #[expect(unsafe_code, reason = "what librdkafka gave has to be given back")]
            fn drop(&mut self) {
                // SAFETY: it is ours, and given back once.
                unsafe { native::$destroy(self.0.as_ptr()) };
            }
        })*
    };
}
pub(super) use destroyed_on_drop;

destroyed_on_drop! {
    Queue: rd_kafka_queue_destroy;
    Options: rd_kafka_AdminOptions_destroy;
    Answer: rd_kafka_event_destroy;
}
