// The part that AWAY names was away, and is back.
import { test, expect } from '../console_page.js';

test(`the pipeline page forgets that ${process.env.AWAY} was away`, async ({ page }) => {
  await page.goto('/');
  await expect(page.locator('.away')).toHaveCount(0, { timeout: 45_000 });
  await expect(page.locator('main .old')).toHaveCount(0);
});
