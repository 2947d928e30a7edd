// Started by tests/console/browser.rs, which gives CONSOLE_URL, CONSOLE_TOKEN and PICTURES. CHROMIUM is another browser than Debian's.
import { defineConfig } from '@playwright/test';

export default defineConfig({
  testDir: '.',
  // One after another: the tests change the same pipeline.
  workers: 1,
  retries: 0,
  forbidOnly: true,
  timeout: 60_000,
  expect: { timeout: 15_000 },
  reporter: 'list',
  use: {
    baseURL: process.env.CONSOLE_URL,
    viewport: { width: 1440, height: 900 },
    locale: 'en-GB',
    timezoneId: 'Asia/Seoul',
    launchOptions: { executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium' },
  },
  projects: ['screens', 'away', 'back', 'pictures'].map((name) => ({ name, testDir: `./${name}` })),
});
