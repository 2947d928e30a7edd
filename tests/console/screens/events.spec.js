// Events: search, one record by its link, a topic as it grows.
import { test, expect, tabTo } from '../console_page.js';

const rows = (page) => page.locator('table.records').first().locator('tbody tr');

test('a key is found with the mouse, and its first record leads to its trace', async ({ page }) => {
  await page.goto('/');
  await page.getByRole('navigation').getByRole('link', { name: 'Events' }).click();
  await page.getByLabel('Topic').selectOption('user-events');
  await page.getByLabel('Key', { exact: true }).fill('1');
  await page.getByRole('button', { name: 'Search' }).click();
  // User 1 was created and then changed.
  await expect(rows(page)).toHaveCount(2);
  await expect(rows(page).first()).toContainText('USER_UPDATED');
  await expect(rows(page).last()).toContainText('USER_CREATED');
  await rows(page).first().getByRole('rowheader').getByRole('link').click();
  await expect(page.getByRole('heading', { level: 1 })).toContainText('of user-events');
  await expect(page.locator('main')).toContainText('"status": "INACTIVE"');
  await page.getByRole('link', { name: 'Trace its way' }).click();
  await expect(page).toHaveURL(/\/trace\?/);
});

test('a header and a field are found with the keyboard alone', async ({ page }) => {
  await page.goto('/events');
  await tabTo(page, page.getByLabel('Header', { exact: true }));
  await page.keyboard.type('eventType=USER_UPDATED');
  await tabTo(page, page.getByLabel('Field of the value'));
  await page.keyboard.type('user.status=INACTIVE');
  await page.keyboard.press('Enter');
  await expect(page).toHaveURL(/header=/);
  // Every third of forty users was changed.
  await expect(rows(page)).toHaveCount(14);
  await tabTo(page, rows(page).first().getByRole('rowheader').getByRole('link'));
  await page.keyboard.press('Enter');
  await expect(page.locator('main')).toContainText('USER_UPDATED');
});

test('a search that is wrong is refused in words', async ({ page }) => {
  const answer = await page.request.get('/events?topic=user-events&partition=many');
  expect(answer.status()).toBe(422);
  expect(await answer.text()).toContain('Nothing was searched');
});

test('a topic is followed, and paused', async ({ page }) => {
  await page.goto('/events');
  await page.getByRole('button', { name: 'Follow' }).click();
  const tail = page.locator('[data-tail-rows] tr');
  // What was written before the console has begun to follow is not shown. So users are made until one is.
  await expect(async () => {
    const user = { name: '이순신', email: `tail-${Date.now()}@example.com`, department: '개발팀', status: 'ACTIVE' };
    const created = await page.request.post(`${process.env.USER_API}/api/users`, { data: user });
    expect(created.status()).toBe(201);
    await expect(tail.first()).toContainText('USER_CREATED', { timeout: 2000 });
  }).toPass();
  await page.getByRole('button', { name: 'Pause' }).click();
  await expect(page.getByRole('button', { name: 'Follow' })).toBeVisible();
});

test('what a record holds is text and never markup', async ({ page }) => {
  await page.goto('/events?topic=user-events&field=user.department%3D%EB%B3%B4%EC%95%88%ED%8C%80');
  await expect(rows(page)).toHaveCount(1);
  await rows(page).first().getByRole('rowheader').getByRole('link').click();
  await expect(page.locator('main')).toContainText("document.title = 'taken'");
  await expect(page.locator('main img, main script:not([src])')).toHaveCount(0);
  expect(await page.title()).not.toContain('taken');
});
