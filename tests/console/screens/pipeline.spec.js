// The first page: every stage, what is wrong, and figures that renew themselves.
import { test, expect } from '../console_page.js';

test('each stage is there with its health in a word, and the worst is said first', async ({ page }) => {
  await page.goto('/');
  for (const name of ['users_relay', 'posts_relay', 'user-events', 'post-events', 'user_view', 'activity']) {
    await expect(page.getByRole('heading', { level: 3, name, exact: true })).toBeVisible();
  }
  const stages = page.locator('article.stage');
  await expect(stages.locator('.badge')).toHaveCount(await stages.count());
  await expect(page.locator('.summary')).toContainText(/dead[ _-]letters/);
});

test('figures are renewed while somebody looks, and the focus stays', async ({ page }) => {
  await page.goto('/');
  const link = page.getByRole('link', { name: 'Its events' }).first();
  await link.focus();
  const topic = page.locator('article.stage', { hasText: 'user-events' });
  const before = await topic.locator('dd').last().textContent();
  const user = { name: '신사임당', email: `live-${Date.now()}@example.com`, department: '개발팀', status: 'ACTIVE' };
  expect((await page.request.post(`${process.env.USER_API}/api/users`, { data: user })).status()).toBe(201);
  await expect(topic.locator('dd').last()).not.toHaveText(before, { timeout: 20_000 });
  await expect(link).toBeFocused();
});
