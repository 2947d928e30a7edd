//! Headers of a record, as bytes. Kafka takes any bytes as a header's name. The safe wrapper wants text there and panics at anything else, so one such
//! record would end each program that reads it.

use std::ffi::{CStr, c_void};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

use rdkafka::bindings as native;
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaRespErr;

/// A header's name and its value, which may be null.
pub type RecordHeader<'r> = (&'r [u8], Option<&'r [u8]>);

/// The headers of a record, in their order.
pub struct RecordHeaders<'r> {
    /// `None`: the record has no headers.
    native: Option<NonNull<native::rd_kafka_headers_t>>,
    index: usize,
    _record: PhantomData<&'r ()>,
}

/// The headers of `message`, in their order.
#[must_use]
pub fn headers_of<'r>(message: &'r BorrowedMessage<'_>) -> RecordHeaders<'r> {
    match NonNull::new(message.ptr()) {
        // SAFETY: the message is valid for as long as it is borrowed.
        #[expect(unsafe_code, reason = "the record is in librdkafka's memory")]
        Some(message) => unsafe { RecordHeaders::from_native(message) },
        None => RecordHeaders::none(),
    }
}

impl<'r> RecordHeaders<'r> {
    /// # Safety
    /// The message must be valid for the lifetime `'r`.
    #[expect(unsafe_code, reason = "the record is in librdkafka's memory")]
    pub(crate) unsafe fn from_native(message: NonNull<native::rd_kafka_message_t>) -> Self {
        let mut headers = ptr::null_mut();
        // SAFETY: the caller promises that the message is valid. It owns its headers.
        let answer = unsafe { native::rd_kafka_message_headers(message.as_ptr(), &raw mut headers) };
        let is_there = answer == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR;
        Self {
            native: NonNull::new(headers).filter(|_| is_there),
            ..Self::none()
        }
    }

    fn none() -> Self {
        Self {
            native: None,
            index: 0,
            _record: PhantomData,
        }
    }
}

impl<'r> Iterator for RecordHeaders<'r> {
    type Item = RecordHeader<'r>;

    #[expect(unsafe_code, reason = "the record is in librdkafka's memory")]
    fn next(&mut self) -> Option<RecordHeader<'r>> {
        let headers = self.native?;
        let (mut name, mut value, mut length) = (ptr::null(), ptr::null::<c_void>(), 0);
        // SAFETY: the headers live as long as the record. A name ends with a zero byte, and librdkafka gives a value's length with its pointer.
        unsafe {
            let answer = native::rd_kafka_header_get_all(
                headers.as_ptr(),
                self.index,
                &raw mut name,
                &raw mut value,
                &raw mut length,
            );
            if answer != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR || name.is_null() {
                return None;
            }
            self.index += 1;
            let value = (!value.is_null()).then(|| std::slice::from_raw_parts(value.cast(), length));
            Some((CStr::from_ptr(name).to_bytes(), value))
        }
    }
}
