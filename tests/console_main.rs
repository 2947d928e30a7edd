//! Tests of the console in a real browser, on a running pipeline. Playwright drives Debian's Chromium. The name of every test begins with `console::`, so
//! that `./test` can tell them from the others. They share one pipeline, so they run one at a time.

mod console;
