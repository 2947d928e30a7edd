#!/bin/sh
# `./test` has cargo start every test program by this: libtest then says how many seconds each test took. libtest calls that unstable, and takes the
# arguments only where the variable is set. Nothing is compiled with it.
RUSTC_BOOTSTRAP=1 exec "$@" -Z unstable-options --report-time
