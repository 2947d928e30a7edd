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
  // A new event: what tests have replayed and rebuilt has later times than it had at first.
  const user = { name: '홍길동', email: `picture-${Date.now()}@example.com`, department: '개발팀', status: 'ACTIVE' };
  const created = await (await page.request.post(`${process.env.USER_API}/api/users`, { data: user })).json();
  await expect(async () => {
    await page.goto(`/trace?topic=user-events&key=${created.id}`);
    await expect(page.locator('main')).toContainText('in all views', { timeout: 500 });
  }).toPass();
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
