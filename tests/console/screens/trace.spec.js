// Trace: the way of one event, and where it ended.
import { test, expect, tabTo } from '../console_page.js';

test('the latest event of a key is followed to its row, with the mouse', async ({ page }) => {
  await page.goto('/');
  await page.getByRole('navigation', { name: 'Pages' }).getByRole('link', { name: 'Trace' }).click();
  const form = page.locator('form', { hasText: 'The latest of a key' });
  await form.getByLabel('Topic').selectOption('user-events');
  await form.getByLabel('Key').fill('1');
  await form.getByRole('button', { name: 'Trace the latest' }).click();
  for (const step of ['Outbox row', 'Commit', 'Record in the topic', 'Views']) {
    await expect(page.getByRole('heading', { name: step, exact: true })).toBeVisible();
  }
  await expect(page.locator('main')).toContainText('in all views');
  await expect(page.locator('main')).toContainText('has version 2, which is this event');
});

test('an event is followed by its id to its dead letter, with the keyboard alone', async ({ page }) => {
  await page.goto('/events?topic=user-events&header=eventType%3DUSER_PROMOTED');
  await page.locator('table.records').first().getByRole('rowheader').getByRole('link').first().click();
  const id = await page.locator('main code').filter({ hasText: /^[0-9a-f]{8}-[0-9a-f-]{27}$/ }).first().textContent();
  await page.goto('/trace');
  await tabTo(page, page.getByLabel('Event id'));
  await page.keyboard.type(id.trim());
  await page.keyboard.press('Enter');
  await expect(page.locator('main')).toContainText(/a dead letter|waits behind a dead letter/);
  await expect(page.locator('main').getByRole('link', { name: /letter/i }).first()).toBeVisible();
});
