// The pictures in README and docs/console.md. PICTURES is their folder.
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { test, expect, logIn } from '../console_page.js';

const BYTES_MAX = 150_000;

async function take(page, name, height = 900) {
  const path = join(process.env.PICTURES, `${name}.png`);
  await page.screenshot({ path, animations: 'disabled', clip: { x: 0, y: 0, width: 1440, height } });
  expect((await stat(path)).size, `${name}.png in bytes`).toBeLessThanOrEqual(BYTES_MAX);
}

test('the pipeline', async ({ page }) => {
  await page.goto('/');
  await take(page, 'pipeline');
});

test('the trace of an event', async ({ page }) => {
  await page.goto('/trace?topic=user-events&key=1');
  await take(page, 'trace');
});

test('the slots', async ({ page }) => {
  await page.goto('/slots');
  // The first slot and its relay.
  await take(page, 'slots', 760);
});

test.describe('in dark', () => {
  test.use({ colorScheme: 'dark' });
  test('the dead letters', async ({ page }) => {
    await logIn(page);
    await page.goto('/letters');
    await take(page, 'letters');
  });
});
