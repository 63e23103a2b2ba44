//! Calls about streams and events. The host learns that an operation is over only from a call that reports it.

use std::ffi::c_uint;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crate::codes::{Code, INVALID_HANDLE, INVALID_VALUE, NOT_READY};
use crate::device::{DEFAULT_STREAM, State, call, call_to_release, new_handle};
use crate::op::{Event, Record, Stream, Task};
use crate::{Out, put};

const STREAM_NON_BLOCKING: c_uint = 1;
const EVENT_DISABLE_TIMING: c_uint = 2;
const EVENT_FLAGS: c_uint = 7;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: Out<'_, usize>, flags: c_uint) -> Code {
    call(|_, mut state| {
        if flags > STREAM_NON_BLOCKING || stream.is_none() {
            return Err(INVALID_VALUE);
        }
        let handle = new_handle();
        let number = state.streams.len();
        state.streams.push(Stream { blocking: flags != STREAM_NON_BLOCKING, ..Stream::default() });
        state.stream_handles.insert(handle, number);
        put(stream, handle);
        Ok(())
    })
}

/// Enqueued work still runs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamDestroy_v2(stream: usize) -> Code {
    call_to_release(|_, mut state| match state.stream_handles.remove(&stream) {
        Some(_) => Ok(()),
        None => Err(state.bad_handle("cuStreamDestroy", "stream", stream)),
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamWaitEvent(stream: usize, event: usize, flags: c_uint) -> Code {
    call(|device, mut state| {
        if flags > 1 {
            return Err(INVALID_VALUE);
        }
        let stream = state.stream(stream, "cuStreamWaitEvent")?;
        // The record that counts is the last one as of now. None: there is nothing to wait for.
        if let Some(record) = state.event(event, "cuStreamWaitEvent")?.record.clone() {
            state.order_after(stream, record.stream, record.number, &record.clock);
            device.kick(&mut state);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamQuery(stream: usize) -> Code {
    call(|_, mut state| {
        let stream = state.stream(stream, "cuStreamQuery")?;
        if !state.stream_is_over(stream) {
            state.polled = Some(Instant::now());
            return Err(NOT_READY);
        }
        let clock = state.streams[stream].clock.clone();
        state.learn(&clock);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamSynchronize(stream: usize) -> Code {
    call(|device, mut state| {
        let stream = state.stream(stream, "cuStreamSynchronize")?;
        let (number, clock) = (state.streams[stream].issued, state.streams[stream].clock.clone());
        let (mut state, result) = device.wait(state, stream, number);
        result?;
        state.learn(&clock);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSynchronize() -> Code {
    call(|device, mut state| {
        let points: Vec<_> = state.streams.iter().map(|stream| (stream.issued, stream.clock.clone())).collect();
        let before = state.counts.host_syncs;
        for (stream, (number, clock)) in points.iter().enumerate() {
            let result;
            (state, result) = device.wait(state, stream, *number);
            result?;
            state.learn(clock);
        }
        // However many streams there are, it is one wait.
        state.counts.host_syncs = before + 1;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: Out<'_, usize>, flags: c_uint) -> Code {
    call(|_, mut state| {
        // What is shared between processes (4) cannot be timed.
        if flags > EVENT_FLAGS || flags & 6 == 4 || event.is_none() {
            return Err(INVALID_VALUE);
        }
        let handle = new_handle();
        state.events.insert(handle, Event { timed: flags & EVENT_DISABLE_TIMING == 0, record: None });
        put(event, handle);
        Ok(())
    })
}

/// Enqueued waits for its record stay.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventDestroy_v2(event: usize) -> Code {
    call_to_release(|_, mut state| match state.events.remove(&event) {
        Some(_) => Ok(()),
        None => Err(state.bad_handle("cuEventDestroy", "event", event)),
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventRecord(event: usize, stream: usize) -> Code {
    call(|device, mut state| {
        let stream = state.stream(stream, "cuEventRecord")?;
        state.event(event, "cuEventRecord")?;
        let time = Arc::new(OnceLock::new());
        let task = Task::Record { time: Arc::clone(&time) };
        let number = state.enqueue(stream, "record".into(), task, Vec::new(), &[]);
        let clock = state.streams[stream].clock.clone();
        state.event(event, "cuEventRecord")?.record = Some(Record { stream, number, clock, time });
        device.kick(&mut state);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventQuery(event: usize) -> Code {
    call(|_, mut state| {
        let Some(record) = state.event(event, "cuEventQuery")?.record.clone() else { return Ok(()) };
        if !state.is_over(&record) {
            state.polled = Some(Instant::now());
            return Err(NOT_READY);
        }
        state.learn(&record.clock);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventSynchronize(event: usize) -> Code {
    call(|device, mut state| {
        let record = state.event(event, "cuEventSynchronize")?.record.clone();
        // One that was never recorded has passed, and the call still counts as one that waits.
        let record = record.unwrap_or_else(|| Record {
            stream: DEFAULT_STREAM,
            number: 0,
            clock: Default::default(),
            time: Arc::default(),
        });
        let (mut state, result) = device.wait(state, record.stream, record.number);
        result?;
        state.learn(&record.clock);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(ms: Out<'_, f32>, start: usize, end: usize) -> Code {
    call(|_, mut state| {
        if ms.is_none() {
            return Err(INVALID_VALUE);
        }
        let (start, end) = (passed_at(&mut state, start)?, passed_at(&mut state, end)?);
        let (start, end) = (start.ok_or(NOT_READY)?, end.ok_or(NOT_READY)?);
        let elapsed = match end.checked_duration_since(start) {
            Some(elapsed) => elapsed.as_secs_f32(),
            None => -(start - end).as_secs_f32(),
        };
        put(ms, elapsed * 1e3);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime_v2(ms: Out<'_, f32>, start: usize, end: usize) -> Code {
    // SAFETY: the same call under its newer name.
    unsafe { cuEventElapsedTime(ms, start, end) }
}

/// Time at which a timed event passed; `None` if it has not.
fn passed_at(state: &mut State, handle: usize) -> Result<Option<Instant>, Code> {
    let event = state.event(handle, "cuEventElapsedTime")?;
    let record = event.record.clone().filter(|_| event.timed).ok_or(INVALID_HANDLE)?;
    if !state.is_over(&record) {
        return Ok(None);
    }
    state.learn(&record.clock);
    Ok(record.time.get().copied())
}
