// The part that AWAY names is gone when these tests begin. The console hears of it when it asks the next time.
import { test, expect, PAGES } from '../console_page.js';

const part = process.env.AWAY;
const ANSWER_MS_MAX = 1000;

test(`the pipeline page says that ${part} is away, since when, and marks old figures`, async ({ page }) => {
  await page.goto('/');
  const notice = page.locator('.away', { hasText: `${part} is away since` });
  await expect(notice).toBeVisible({ timeout: 30_000 });
  await expect(notice.locator('time').first()).toHaveAttribute('datetime', /^\d{4}-\d\d-\d\dT.*Z$/);
  await expect(page.locator('main .old', { hasText: 'last known' }).first()).toBeVisible();
});

for (const [path, heading] of PAGES) {
  test(`${path} answers at once while ${part} is away`, async ({ page, request }) => {
    // Once for what a first request costs, and once for the figure.
    for (const turn of ['first', 'second']) {
      const begin = Date.now();
      const answer = await request.get(path);
      const elapsed = Date.now() - begin;
      expect(answer.status(), `${turn} request`).toBe(200);
      expect(elapsed, `milliseconds of the ${turn} request`).toBeLessThan(ANSWER_MS_MAX);
    }
    await page.goto(path);
    await expect(page.getByRole('heading', { level: 1 })).toContainText(heading);
  });
}
